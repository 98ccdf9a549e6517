"""The project runs as Kedro's documentation says, and slips on its command line are one line."""

import os
import shutil
import subprocess
import sys

import pytest

SMALL = ("--pipelines", "mt_bench", "--namespaces", "data_ingest", "--env", "test")


@pytest.fixture
def run(project_folder):
    environment = os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}

    def kedro_run(*arguments, module=("kedro", "run"), folder=project_folder, **variables):
        return subprocess.run(
            [sys.executable, "-m", *module, *arguments],
            cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return kedro_run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--pipelines", "mt_bnch"], "mt_bnch: is no pipeline that is known here. Did you mean mt"),
        (["--namespaces", "sami_trainin"], "no node is under it. Did you mean "),
        (["--nodes", "mt_bench.data_ingest.tidy_question"], "Did you mean mt_bench.data_ingest"),
        (["--pipelines", "mt_bench", "--to-outputs", "mt_bench.answer"], "mt_bench.answers?"),
        (["--pipelines", "mt_bench", "--tags", "nothing"], "no nodes after applying"),
        (["--pipelines", "math,mt_bench,published"], "published: can't run with several exp"),
        (["--pipelines", ","], "--pipelines: names none"),
        (["--runner", "ParallelRunner"], "--runner: ParallelRunner: nodes of this project can't"),
        (["--runner", "Hurry"], "--runner: Hurry: is no runner"),
        (["--runner-params", "max_workers=2"], "max_workers: SequentialRunner has no such"),
        (["--pipeline", "math", "--pipelines", "math"], "cannot be used together"),
    ],
)
def test_a_name_that_is_unknown_ends_in_one_line(kedro_fork, arguments, expected):
    finished = kedro_fork(["run", "--env", "test", *arguments])
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert expected in last


@pytest.mark.parametrize(
    ("arguments", "announced"),
    [
        (["--pipelines", "mt_bench", "--namespaces", "data_ingest"], "data_ingest of mt_bench: "),
        (
            ["--pipelines", "mt_bench", "--namespaces", "mt_bench.data_ingest"],
            "data_ingest of mt_bench: ",
        ),
        (["--namespaces", "mt_bench.data_ingest"], "mt_bench.data_ingest of all experiments ("),
        (["--namespaces", "data_ingest"], "math.data_ingest, mt_bench.data_ingest"),
        (
            ["--pipelines", "mt_bench,math", "--namespaces", "data_ingest"],
            "mt_bench.data_ingest, math.data_ingest of all experiments (",
        ),
    ],
)
def test_a_stage_runs_by_its_namespace_however_it_is_written(
    kedro_fork, run_name, arguments, announced
):
    finished = kedro_fork(
        ["run", "--env", "test", *arguments, "--params", f"run_name={run_name()}"]
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert announced in finished.stderr


def test_the_package_runs_as_a_module(run, run_name):
    name = run_name()
    finished = run(*SMALL, "--params", f"run_name={name}", module=("sami_pipeline",))
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "data_ingest of mt_bench" in finished.stderr


def test_an_installed_wheel_runs_in_a_folder_with_conf_and_data(run, project_folder, tmp_path):
    wheels, installed, folder = tmp_path / "wheels", tmp_path / "installed", tmp_path / "folder"
    source = tmp_path / "source"
    shutil.copytree(project_folder / "src", source / "src")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project_folder / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    subprocess.run([*pip, *build], check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")
    place = ("install", "--no-deps", "--no-index", "--target", str(installed), str(wheel))
    subprocess.run([*pip, *place], check=True, timeout=300)
    folder.mkdir()
    shutil.copytree(project_folder / "conf", folder / "conf")
    (folder / "data").mkdir()
    (folder / "data" / "01_raw").symlink_to(project_folder / "data" / "01_raw")
    finished = run(*SMALL, module=("sami_pipeline",), folder=folder, PYTHONPATH=str(installed))
    assert finished.returncode == 0, finished.stderr[-2000:]
    made = {path.name for path in (folder / "data").rglob("*.parquet")}
    assert {"questions.parquet", "queries.parquet"} <= made
