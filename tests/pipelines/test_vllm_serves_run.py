"""vLLM's own server, with the embedded model, teaches and judges a whole experiment."""

import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pandas as pd
import pytest

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.engines import vllm_server
from sami_pipeline.models.checkpoints import ModelSource, import_model

pytestmark = pytest.mark.vllm

MODEL = "smollm2-135m-instruct"
SOURCE = "gguf:data/01_raw/models/SmolLM2-135M-Instruct.Q4_1.gguf"
SECONDS_TO_START = 300


def answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a running vLLM server."""
    folder = tmp_path_factory.mktemp("vllm_server")
    dataset = CheckpointDataset(filepath=str(folder / "model"))
    dataset.save(import_model(ModelSource.model_validate(SOURCE), PROJECT_FOLDER))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        vllm_server.interpreter(None), "-m", "vllm.entrypoints.openai.api_server",
        "--model", folder / "model", "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port),
        "--enforce-eager", "--max-model-len", "8192", "--generation-config", "vllm",
    ]  # fmt: skip
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env=os.environ | variables
        )
    try:
        until = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                answer(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def answered(server: str) -> int:
    """Return how many requests the server has answered, by its own account."""
    counted = re.findall(
        r"^vllm:request_success_total\{.*\} (\S+)$", answer(f"{server}/metrics"), re.M
    )
    return int(sum(map(float, counted)))


def test_vllms_server_teaches_and_judges_a_whole_run(server, kedro_run, run_name, project_folder):
    name = run_name()
    engines = {
        f"mt_bench.{group}.engine.{setting}": value
        for group in ("generation", "judge")
        for setting, value in {
            "kind": "openai",
            "openai.base_url": f"{server}/v1",
            "openai.model": MODEL,
            "openai.choices": "structured_outputs",
        }.items()
    }
    settings = engines | {
        "run_name": name,
        "mt_bench.models.teacher": "hosted",
        "mt_bench.judge.kind": "pairwise",
        "mt_bench.judge.answer_format": "choice",
    }
    given = ",".join(f"{key}={value}" for key, value in settings.items())
    finished = kedro_run("--env", "test", "--params", given)
    assert finished.returncode == 0, finished.stderr[-3000:]

    def table(layer: str, table_name: str) -> pd.DataFrame:
        return pd.read_parquet(
            project_folder / "data" / layer / name / "mt_bench" / f"{table_name}.parquet"
        )

    generations = table("04_feature", "generations")
    judgements = table("07_model_output", "judgements")
    assert set(generations["finish_reason"]) <= {"stop", "length"}
    assert generations["response"].str.contains("[a-z]{3}").mean() > 0.8, "a model that can write"
    assert set(judgements["judge_model"]) == {MODEL}
    assert set(judgements["verdict"]) <= {"A", "B", "C"}, "held to its choices"
    asked = len(generations.drop_duplicates("prompt")) + len(judgements.drop_duplicates("prompt"))
    assert answered(server) == asked
    rates = table("08_reporting", "win_rates").query("judge == 'pairwise'")
    assert rates["invalid"].sum() == 0
    assert rates["n"].sum() > 0

    again = kedro_run("--env", "test", "--params", given)
    assert again.returncode == 0, again.stderr[-3000:]
    assert answered(server) == asked, "nothing is asked twice"
