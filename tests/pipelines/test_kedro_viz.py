"""kedro viz of a finished run, looked at in a real browser."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from browser import free_port

LAYERS = [
    "raw",
    "primary",
    "feature",
    "model_input",
    "models",
    "model_output",
    "reporting",
]
SHARED = [
    "baseline_training",
    "data_ingest",
    "reporting",
    "sami_generation",
    "sami_training",
    "training_summary",
]
FOLDED = {
    "__default__": ["align", "math", "mt_bench"],
    "mt_bench": sorted([*SHARED, "mt_bench_eval"]),
    "math": sorted([*SHARED, "math_accuracy"]),
}
PLOTS = {
    "mt_bench": [
        "figure_win_rates",
        "figure_compliance",
        "figure_learning_curve",
        "base_checkpoint",
        "sami_checkpoint",
        "dpo_checkpoint",
    ],
    "math": [
        "figure_accuracy",
        "figure_attempts",
        "figure_learning_curve",
        "sft_sami_checkpoint",
    ],
}
# The typeface of kedro-viz's own page; without a network it uses the system's.
FONTS = {"fonts.googleapis.com", "fonts.gstatic.com"}
PANEL = ".pipeline-metadata .js-plotly-plot"
MARKS = ", ".join(
    f"{PANEL} {mark}"
    for mark in (".scatterlayer path.point", ".scatterlayer path.js-line", ".barlayer .point path")
)


@dataclass
class Server:
    """A kedro viz server.

    Attributes:
        address: of its page.
        run_name: the run that it shows.
        log: what it wrote, with the name of every module that it imported.
        processor_seconds: what it used until it answered.
    """

    address: str
    run_name: str
    log: Path
    processor_seconds: float

    def ask(self, path: str) -> Any:
        """Return the answer to a request to its API."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.address}/api/{path}", timeout=30) as answer:
            return json.load(answer)

    def datasets(self, pipeline: str) -> dict[str, dict[str, Any]]:
        """Return what the graph says of each dataset of a pipeline, by its name."""
        nodes = self.ask(f"pipelines/{pipeline}")["nodes"]
        return {node["name"]: node for node in nodes if node["type"] == "data"}


def processor_seconds(process: psutil.Process) -> float:
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


@pytest.fixture(scope="module")
def server(kedro_run, run_name, project_folder, tmp_path_factory) -> Iterator[Server]:
    """kedro viz with both experiments of the test environment run."""
    name = run_name()
    arguments = ("--env", "test", "--params", f"run_name={name}")
    finished = kedro_run(*arguments, pipeline="__default__")
    assert finished.returncode == 0, finished.stderr[-3000:]
    port = free_port()
    log = tmp_path_factory.mktemp("kedro_viz") / "log.txt"
    environment = os.environ | {
        "DO_NOT_TRACK": "1",
        "PYTHONPROFILEIMPORTTIME": "1",
        # It asks the package index for its newest version; a closed port says no at once.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "kedro", "viz", "run", "--no-browser", "--port", str(port)]
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *arguments], cwd=project_folder, env=environment, stdout=written,
            stderr=written, start_new_session=True,
        )  # fmt: skip
    started = Server(f"http://127.0.0.1:{port}", name, log, 0.0)
    try:
        wait_for_answer(started, process)
        started.processor_seconds = processor_seconds(psutil.Process(process.pid))
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def wait_for_answer(server: Server, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            server.ask("main")
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"kedro viz does not answer:\n{server.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def screenshots(project_folder) -> Path:
    """Where pictures of the browser stay, whatever the run is called that they show."""
    folder = project_folder / "data" / "08_reporting" / "test" / "kedro_viz"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def show(server, open_page, screenshots) -> Callable[..., Any]:
    """Return a function that opens a graph once it is drawn, and keeps a picture of it."""
    # A tour for newcomers lies over the graph.
    settings = {"name": "KedroViz", "value": json.dumps({"showFeatureHints": False})}
    without_hints = {"origins": [{"origin": server.address, "localStorage": [settings]}]}

    def open_graph(picture: str, query: str, until: str = ".pipeline-node"):
        watched = open_page(f"{server.address}/?{query}", storage_state=without_hints)
        watched.page.locator(until).first.wait_for()
        # Nodes fly to their place.
        watched.page.wait_for_timeout(1000)
        watched.page.screenshot(path=screenshots / f"{picture}.png")
        assert watched.outside <= FONTS
        return watched.page

    return open_graph


@pytest.mark.parametrize("pipeline", FOLDED)
def test_graph_opens_folded_into_its_pipelines_with_layers_from_raw_to_reporting(
    show, server, pipeline
):
    page = show(f"{pipeline.strip('_')}_folded", f"pid={pipeline}")
    boxes = page.locator(".pipeline-node--modularPipeline .pipeline-node__text").all_text_contents()
    assert sorted(boxes) == FOLDED[pipeline]
    layers = server.ask(f"pipelines/{pipeline}")["layers"]
    assert [layer for layer in layers if layer in LAYERS] == LAYERS
    # A layer whose datasets are all folded away has no band.
    bands = page.locator(".pipeline-layer-name").all_text_contents()
    assert bands == [layer for layer in LAYERS if layer in bands]
    assert bands[0] == "raw"
    assert bands[-1] == "reporting"


@pytest.mark.parametrize("pipeline", FOLDED)
def test_unfolded_graph_has_every_node_and_dataset_under_its_name(show, server, pipeline):
    page = show(f"{pipeline.strip('_')}_unfolded", f"pid={pipeline}&expandAllPipelines=true")
    known = [
        node["name"]
        for node in server.ask(f"pipelines/{pipeline}")["nodes"]
        if node["type"] in ("task", "data")
    ]
    assert len(known) > 50
    drawn = page.locator(".pipeline-node__text").all_text_contents()
    assert sorted(drawn) == sorted(known)


@pytest.mark.parametrize("pipeline", PLOTS)
def test_panels_of_figures_and_checkpoints_show_a_plot_with_marks_in_it(
    show, screenshots, pipeline
):
    page = show(f"{pipeline}_list", f"pid={pipeline}")
    for dataset in PLOTS[pipeline]:
        name = f"{pipeline}.{dataset}"
        page.locator(".pipeline-nodelist").get_by_text(name, exact=True).click()
        page.locator(".pipeline-metadata__title").get_by_text(name, exact=True).wait_for()
        page.locator(f"{PANEL} .main-svg").first.wait_for()
        page.screenshot(path=screenshots / f"{pipeline}_{dataset}.png")
        marks = [mark.bounding_box() for mark in page.locator(MARKS).all()]
        assert any(mark and max(mark["width"], mark["height"]) > 3 for mark in marks), name
        page.locator(".pipeline-metadata button[aria-label='Close Metadata Panel']").click()
        page.locator(PANEL).wait_for(state="detached")


def test_every_figure_and_checkpoint_is_previewed_as_a_plot_and_every_table_as_a_table(server):
    expected = {
        "plotly.json_dataset.JSONDataset": "PlotlyPreview",
        "datasets.checkpoint.CheckpointDataset": "PlotlyPreview",
        "datasets.previews.TextTable": "TablePreview",
        "datasets.previews.ReportPage": "HTMLPreview",
        "pandas.parquet_dataset.ParquetDataset": "TablePreview",
        "datasets.raw_files.JsonLinesDataset": "TablePreview",
        "datasets.raw_files.StrictYamlDataset": "JSONPreview",
    }
    seen = set()
    for pipeline in PLOTS:
        for name, dataset in server.datasets(pipeline).items():
            if dataset["dataset_type"] in expected:
                panel = server.ask(f"nodes/{dataset['id']}")
                assert panel["preview"], name
                assert panel["preview_type"] == expected[dataset["dataset_type"]], name
                seen.add(dataset["dataset_type"])
    assert seen == set(expected)


def test_panel_of_a_result_table_shows_all_its_rows(show, server, project_folder):
    page = show(
        "mt_bench_win_rates", "pid=mt_bench&sn=mt_bench.win_rates&expandAllPipelines=true",
        until=".pipeline-metadata table",
    )  # fmt: skip
    folder = project_folder / "data" / "08_reporting" / server.run_name / "mt_bench"
    table = pd.read_parquet(folder / "win_rates.parquet")
    assert len(table) > 5, "kedro-viz shows five rows of itself"
    assert page.locator(".pipeline-metadata table tr:has(td)").count() == len(table)


def test_panel_of_a_table_of_texts_shows_rows_that_fit(show, server):
    page = show(
        "mt_bench_generations", "pid=mt_bench&sn=mt_bench.generations&expandAllPipelines=true",
        until=".pipeline-metadata table",
    )  # fmt: skip
    heights = page.eval_on_selector_all(
        ".pipeline-metadata table tr:has(td)",
        "rows => rows.map(row => row.getBoundingClientRect().height)",
    )
    assert len(heights) == 20 and max(heights) < 300


def test_report_opens_from_the_graph_and_nothing_else_is_given_out(show, server):
    page = show(
        "mt_bench_report", "pid=mt_bench&sn=mt_bench.report&expandAllPipelines=true",
        until=".pipeline-metadata a[href*=reports]",
    )  # fmt: skip
    assert "Principles followed" in page.locator(".pipeline-metadata").text_content()
    page.locator(".pipeline-metadata a[href*=reports]").click()
    page.locator("#cards").wait_for()
    assert page.title() == f"SAMI on MT-Bench: {server.run_name}"
    for place in (f"{server.run_name}/mt_bench/run_record.json", "../../README.md",
                  "..%2f..%2fREADME.md", "none.html"):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError):
            server.ask(f"reports/{place}")


def test_working_folders_are_no_inputs_in_the_graph(server):
    for pipeline in PLOTS:
        names = server.datasets(pipeline)
        assert not [name for name in names if name.endswith(("completions", "training_state",
                                                             "node_records"))]  # fmt: skip


def test_it_starts_within_ten_seconds(server):
    # Processor time, which a busy machine stretches less than time on the clock.
    assert server.processor_seconds < 10


def test_it_loads_no_model_library_even_for_the_previews_of_checkpoints(server):
    server.ask(f"nodes/{server.datasets('math')['math.sft_checkpoint']['id']}")
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("import time")]
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert {"kedro_viz", "fastapi", "sami_pipeline", "safetensors"} <= imported
    assert not {"torch", "transformers", "trl", "vllm", "openai"} & imported
