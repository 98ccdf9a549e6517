"""The whole experiment on a two-layer model, all text written by vLLM."""

import re
from pathlib import Path

import pandas as pd
import pytest

from sami_pipeline.engines import vllm_server

pytestmark = pytest.mark.vllm

KINDS = "mt_bench.generation.engine.kind=vllm,mt_bench.evaluation.engine.kind=vllm"
FP32 = "mt_bench.generation.engine.{0}.dtype=float32,mt_bench.evaluation.engine.{0}.dtype=float32"


def table(project: Path, run: str, name: str) -> pd.DataFrame:
    (path,) = (project / "data").glob(f"*/{run}/mt_bench/{name}.parquet")
    return pd.read_parquet(path)


def running_workers() -> list[str]:
    script = str(vllm_server._WORKER).encode()
    return [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if script in path.read_bytes()
    ]


def test_whole_experiment_runs_with_vllm_and_writes_what_transformers_writes(
    kedro_run, run_name, project_folder
):
    # Greedy: the two engines draw a sample's random numbers differently.
    run, other = run_name(), run_name()
    greedy = "mt_bench.generation.temperature=0.0"
    finished = kedro_run(
        "--env", "test", "--params", f"run_name={run},{KINDS},{greedy},{FP32.format('vllm')}"
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert running_workers() == []

    # It never lives while a model is trained, and goes from checkpoint to checkpoint.
    events = re.findall("vLLM (?:started|ended|took)|grids to train on", finished.stderr)
    running = False
    for event in events:
        assert running == (event in ("vLLM ended", "vLLM took")), events
        running = {"vLLM started": True, "vLLM ended": False}.get(event, running)
    assert not running
    assert events.count("grids to train on") == 2
    assert events.count("vLLM took") >= 1, "sami and dpo are answered for one after the other"

    answers = table(project_folder, run, "answers")
    assert set(answers["model"]) == {"base", "sami", "dpo"}
    assert len(table(project_folder, run, "win_rates")) > 0

    compared = kedro_run(
        "--env", "test", "--to-outputs", "mt_bench.generations",
        "--params", f"run_name={other},{greedy},{FP32.format('transformers')}",
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr[-3000:]
    pd.testing.assert_frame_equal(
        table(project_folder, run, "generations"), table(project_folder, other, "generations")
    )


def test_failure_of_vllm_is_one_line_and_leaves_nothing_running(kedro_run, run_name):
    too_long = "mt_bench.generation.engine.vllm.max_model_len=1000000"
    finished = kedro_run("--env", "test", "--params", f"run_name={run_name()},{KINDS},{too_long}")
    assert finished.returncode != 0
    error = [line for line in finished.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert "vLLM engine: " in error[0]
    assert "its log: " in error[0]
    assert "Traceback" not in finished.stderr
    Path(error[0].rpartition("its log: ")[2]).unlink()
    assert running_workers() == []
