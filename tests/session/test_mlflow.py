"""A run as kedro-mlflow shows it; needs its own environment, see `make test-mlflow`."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.mlflow


@pytest.fixture(scope="module")
def tracked(project_folder, tmp_path_factory):
    """A run of the MT-Bench experiment, and what MLflow has of it."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("kedro_mlflow")
    name, folder = f"pytest_mlflow_{os.getpid()}", tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    conf = folder / "conf"
    copied = subprocess.run(["cp", "-r", str(project_folder / "conf"), str(conf)], check=False)
    assert copied.returncode == 0
    file = conf / "base" / "mlflow.yml"
    text = file.read_text("utf-8")
    file.write_text(
        text.replace("sqlite:///mlflow.db", uri)
        + f"  experiment:\n    create_experiment_kwargs:\n      artifact_location: {folder}/files\n"
    )
    finished = subprocess.run(
        [sys.executable, "-m", "kedro", "run", "--env", "test", "--pipelines", "mt_bench",
         "--conf-source", str(conf), "--params", f"run_name={name}"],
        cwd=project_folder, capture_output=True, text=True, timeout=550, check=False,
        env=os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    folders = list((project_folder / "data").glob(f"0[2-8]_*/{name}"))
    try:
        assert finished.returncode == 0, finished.stderr[-3000:]
        client = mlflow.MlflowClient(uri)
        (experiment,) = (e for e in client.search_experiments() if e.name == "sami_pipeline")
        (run,) = client.search_runs([experiment.experiment_id])
        yield client, run, project_folder / "data" / "08_reporting" / name / "mt_bench"
    finally:
        for each in folders:
            subprocess.run(["rm", "-r", str(each)], check=True)


def test_every_parameter_is_there_by_its_full_name(tracked):
    _, run, _ = tracked
    assert run.info.status == "FINISHED"
    assert run.data.params["mt_bench.training.sami.batch_size"] == "4"
    assert run.data.params["mt_bench.models.baseline"] == "base"
    assert not any(name.startswith("math.") for name in run.data.params)


def test_metrics_are_the_headline_figures_of_the_tables(tracked):
    _, run, folder = tracked
    table = pd.read_parquet(folder / "win_rates.parquet")
    rows = table[(table["category"] == "overall") & (table["turn"] == "1")]
    rows = rows[(rows["constitution"] == "desired") & (rows["model"] == "sami")]
    value = rows.set_index("opponent").loc["base", "adjusted_win_rate"]
    name = "mt_bench/win_rate against base desired of sami"
    assert math.isclose(run.data.metrics[name], value)
    assert f"{name} - low" in run.data.metrics
    assert any("compliance" in name for name in run.data.metrics)


def test_figures_and_the_report_are_files_of_the_run(tracked):
    client, run, folder = tracked
    files = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "mt_bench")}
    figures = {"win_rates.json", "win_rates.html", "compliance.json", "learning_curve.json"}
    assert figures | {"report.html", "run_record.json"} <= files
    report = client.download_artifacts(run.info.run_id, "mt_bench/report.html")
    assert Path(report).read_bytes() == (folder / "report.html").read_bytes()
