"""Make the pictures of docs/images from finished runs; each says of itself which numbers it shows.

    python benchmarks/pictures.py                    # after `make mt-bench` and `make math`
    python benchmarks/pictures.py math_attempts      # one of them
    python benchmarks/pictures.py --run NAME kedro_viz

A picture carries the run's name and its outcome as text inside the PNG file. The tests compare that
with the pages that show the picture, so that a page with other numbers has to get another picture.
It needs a Chromium: `make chromium`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests"))
from browser import OPTIONS, chromium_path, free_port  # noqa: E402

FOLDER = PROJECT / "docs" / "images"
REPORTS = PROJECT / "data" / "08_reporting"
_SIGNATURE, _KEY = b"\x89PNG\r\n\x1a\n", b"sami_pipeline"
_HEADER = 33  # bytes of the signature and the first chunk, IHDR


def stamped(png: bytes, record: dict) -> bytes:
    """Return a picture that says of itself what it shows (in a tEXt chunk, as PNG has them)."""
    content = _KEY + b"\0" + json.dumps(record).encode("ascii")
    chunk = b"tEXt" + content
    framed = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:_HEADER] + framed + png[_HEADER:]


def stamp(png: bytes) -> dict | None:
    """Return what a picture says that it shows, or None."""
    if not png.startswith(_SIGNATURE):
        raise ValueError("no PNG file")
    at = len(_SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"tEXt" and content.startswith(_KEY + b"\0"):
            return json.loads(content[len(_KEY) + 1 :])
        at += length + 12
    return None


def outcome(run: str, experiment: str) -> list[str]:
    """Return the numbers of a report's cards, with their intervals, as pages write them."""
    path = REPORTS / run / experiment / "run_record.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `make {experiment.replace('_', '-')}` first")
    return [
        f"{finding['value'].split()[0]} {finding['interval']}"
        for card in json.loads(path.read_text("utf-8"))["outcome"]
        for finding in card["findings"]
        if finding["value"].endswith("points")
    ]


def solved(run: str) -> list[str]:
    """Return what each model solves with the most attempts, with its interval."""
    path = REPORTS / run / "math" / "accuracy.parquet"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `make math` first")
    table = pd.read_parquet(path)
    table = table[table["metric"] == "pass_at_k"]
    table = table[table["k"] == table["k"].max()]
    return [
        f"{100 * row.value:.1f} [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]"
        for row in table.itertuples()
    ]


@contextlib.contextmanager
def kedro_viz(run: str) -> Iterator[str]:
    """Serve the graph of a run; gives the address of its page."""
    port = free_port()
    command = [sys.executable, "-m", "kedro", "viz", "run", "--no-browser", "--port", str(port)]
    quiet = {"DO_NOT_TRACK": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(
        [*command, "--params", f"run_name={run}"], cwd=PROJECT, env=os.environ | quiet,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        while process.poll() is None:
            try:
                direct.open(f"{address}/api/main", timeout=30).close()
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        else:
            raise SystemExit("kedro viz does not start; see `kedro viz run`")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def graph(browser, run: str) -> bytes:
    """Return the graph of mt_bench, folded, with what its report says."""
    with kedro_viz(run) as address:
        settings = {"name": "KedroViz", "value": json.dumps({"showFeatureHints": False})}
        page = browser.new_page(
            viewport={"width": 1600, "height": 860},
            storage_state={"origins": [{"origin": address, "localStorage": [settings]}]},
        )
        page.set_default_timeout(120_000)
        page.route("https://**", lambda route: route.abort())
        page.goto(f"{address}/?pid=mt_bench")
        page.locator(".pipeline-node").first.wait_for()
        name = page.locator(".pipeline-nodelist").get_by_text("mt_bench.report", exact=True)
        name.click()
        page.locator(".pipeline-metadata__title").first.wait_for()
        for button in ("menu-button--menu", "menu-button--theme", "minimap-button--map"):
            page.locator(f".pipeline-{button}").click()  # less of the frame, on a light page
        page.locator(".pipeline-minimap-button--reset").click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(6000)  # nodes fly to their place, and a hint goes away
        return page.screenshot()


def math_attempts(browser, run: str) -> bytes:
    """Return the figure of math problems solved by number of attempts."""
    import plotly.io

    from sami_pipeline.figures import standalone_html

    figure = plotly.io.read_json(REPORTS / run / "math" / "attempts.json")
    figure.update_layout(width=1100, height=540)
    page = browser.new_page(viewport={"width": 1120, "height": 560})
    page.set_content(standalone_html(figure))
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    return page.locator(".js-plotly-plot").screenshot()


# By file: what draws it, of which experiment, and the numbers that it shows.
PICTURES: dict[str, tuple[Callable, str, Callable[[str], list[str]]]] = {
    "kedro_viz": (graph, "mt_bench", lambda run: outcome(run, "mt_bench")),
    "math_attempts": (math_attempts, "math", solved),
}


def main() -> None:
    """Make the pictures that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", choices=[*PICTURES, []])
    parser.add_argument("--run", default="default")
    arguments = parser.parse_args()

    from playwright.sync_api import sync_playwright

    chosen = arguments.pictures or list(PICTURES)
    numbers = {name: PICTURES[name][2](arguments.run) for name in chosen}
    with sync_playwright() as playwright:
        path = chromium_path(playwright)
        if path is None:
            raise SystemExit("there is no Chromium: run `make chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        for name in chosen:
            draw, experiment, _ = PICTURES[name]
            record = {"run": arguments.run, "experiment": experiment, "shows": numbers[name]}
            target = FOLDER / f"{name}.png"
            target.write_bytes(stamped(draw(browser, arguments.run), record))
            print(target.relative_to(PROJECT))
        browser.close()


if __name__ == "__main__":
    main()
