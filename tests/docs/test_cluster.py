"""The examples for clusters are what the tools of the page make and take."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "cluster.md").read_text("utf-8")


def test_batch_script_parses_and_names_launch_parameters_that_exist(tmp_path):
    from sami_pipeline.parameters import LaunchParameters

    script = re.search(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL).group(1)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    named = set(re.findall(r"\$launch\.(\w+)=", script))
    assert named
    assert named <= set(LaunchParameters.model_fields)


def test_airflow_dag_has_the_shared_pipelines_in_their_order(tmp_path):
    pytest.importorskip("kedro_airflow")
    command = [
        sys.executable, "-m", "kedro", "airflow", "create", "--pipelines", "mt_bench", "--env",
        "paper", "--group-by", "namespace", "--target-dir", str(tmp_path),
    ]  # fmt: skip
    finished = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=False,
        env=os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    dag = (tmp_path / "sami_pipeline_paper_mt_bench_dag.py").read_text("utf-8")
    compile(dag, "dag", "exec")
    tasks = set(re.findall(r'task_id="([\w-]+)"', dag))
    assert tasks == {name.replace("_", "-") for name in re.findall(r"`(\w+)`", _tasks_in_page())}
    for before, after in (("sami-generation", "sami-training"), ("sami-training", "mt-bench-eval")):
        assert f'tasks["{before}"] >> tasks["{after}"]' in dag


def _tasks_in_page() -> str:
    return re.search(r"has one task each for (.*?), in their order", PAGE, re.DOTALL).group(1)
