"""A disk that is full, read-only or damaged, two runs at once: one line, and good data intact."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from kedro.io import DatasetError
from kedro.pipeline import Node, Pipeline
from kedro_datasets.pandas import ParquetDataset

from sami_pipeline.core.state import load_latest_state, save_state
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.engines import Completion
from sami_pipeline.engines.store import CompletionStore
from sami_pipeline.errors import InputError
from sami_pipeline.models.checkpoints import LoadedModel, missing_part
from sami_pipeline.session.catalog import RunCatalog
from sami_pipeline.session.run_lock import RunLock
from sami_pipeline.training.data import state_kept_in

TABLE = pd.DataFrame({"number": range(5)})
OTHER = pd.DataFrame({"number": range(7)})
CONFIGURATION = {
    "{experiment}.run_state": {
        "type": "sami_pipeline.datasets.WorkingFolder",
        "filepath": "{folder}/.state",
    },
    "x.raw": {"type": "pandas.ParquetDataset", "filepath": "{folder}/raw.parquet"},
    "x.table": {"type": "pandas.ParquetDataset", "filepath": "{folder}/table.parquet"},
    "x.second": {"type": "pandas.ParquetDataset", "filepath": "{folder}/second.parquet"},
    "x.figure": {"type": "plotly.JSONDataset", "filepath": "{folder}/figure.json"},
    "x.text": {"type": "text.TextDataset", "filepath": "{folder}/text.html"},
    "x.record": {"type": "json.JSONDataset", "filepath": "{folder}/record.json"},
    "x.settings": {"type": "yaml.YAMLDataset", "filepath": "{folder}/settings.yml"},
    "x.model": {"type": "sami_pipeline.datasets.CheckpointDataset", "filepath": "{folder}/model"},
}
VALUES = {
    "x.table": (TABLE, OTHER),
    "x.figure": (go.Figure(go.Bar(y=[1, 2])), go.Figure(go.Bar(y=[3]))),
    "x.text": ("a" * 100_000, "b" * 100_000),
    "x.record": ({"a": 1}, {"a": 2}),
    "x.settings": ({"a": 1}, {"a": 2}),
}


def catalog_in(folder: Path) -> RunCatalog:
    entries = {
        name: {key: value.replace("{folder}", str(folder)) for key, value in entry.items()}
        for name, entry in CONFIGURATION.items()
    }
    return RunCatalog.from_config(entries)


def double(table: pd.DataFrame, factor: int) -> pd.DataFrame:
    return table * factor


def both(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return table, table + 1


def following(folder: Path, factor: int = 2, *, going_on: bool = True) -> RunCatalog:
    """Return the catalog of a run that doubles a raw table."""
    catalog = catalog_in(folder)
    catalog["params:factor"] = factor
    node = Node(double, ["x.raw", "params:factor"], "x.table", name="double")
    catalog.follow(Pipeline([node]), going_on=going_on)
    return catalog


@pytest.fixture
def finished(tmp_path) -> Path:
    """A folder in which a run has made its table."""
    TABLE.to_parquet(tmp_path / "raw.parquet")
    following(tmp_path).save("x.table", TABLE * 2)
    return tmp_path


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory on a folder, as only the superuser may."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system of its own can't be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write until the disk is full."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=2m"):
        yield tmp_path / "disk"


def in_child(action: Callable[[], None]) -> int:
    """Do something in a child process and return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "partial" in path.name]


class TestFinishedOrAbsent:
    @pytest.mark.parametrize("name", VALUES)
    def test_an_earlier_file_stays_as_it_was_when_a_save_is_killed(self, name, tmp_path):
        catalog = catalog_in(tmp_path)
        before, after = VALUES[name]
        catalog.save(name, before)
        content = {path: path.read_bytes() for path in tmp_path.iterdir()}

        def save_and_die() -> None:
            os.fsync = lambda _: os._exit(9)  # when everything but the name is written
            catalog.save(name, after)

        assert in_child(save_and_die) == 9
        assert leftovers(tmp_path), "the kill came while the file was written"
        assert {path: path.read_bytes() for path in content} == content
        catalog.save(name, after)
        assert not leftovers(tmp_path)
        assert {path: path.read_bytes() for path in content} != content

    def test_a_save_that_fails_half_way_leaves_the_earlier_file(self, tmp_path):
        catalog = catalog_in(tmp_path)
        catalog.save("x.record", {"a": 1})
        with pytest.raises(DatasetError, match="not JSON serializable"):
            catalog.save("x.record", {"b": ["long" * 100_000, object()]})
        assert catalog.load("x.record") == {"a": 1}
        assert not leftovers(tmp_path)

    def test_versions_and_types_stay_kedros_own(self, tmp_path):
        entry = {"type": "pandas.ParquetDataset", "versioned": True}
        catalog = RunCatalog.from_config({"v": entry | {"filepath": str(tmp_path / "v.parquet")}})
        catalog.save("v", TABLE)
        catalog.release("v")
        assert type(catalog["v"]) is ParquetDataset
        (version,) = catalog["v"].list_versions()
        assert Path(version).name == "v.parquet"
        assert catalog["v"].preview()["data"] == TABLE.values.tolist()


class TestWhatExistsIsStillRight:
    def test_what_was_made_from_the_same_is_kept(self, finished):
        assert following(finished).exists("x.table")

    def test_another_parameter_makes_it_missing_until_it_is_made_again(self, finished):
        catalog = following(finished, factor=3)
        assert not catalog.exists("x.table")
        catalog.save("x.table", TABLE * 3)
        assert following(finished, factor=3).exists("x.table")
        assert not following(finished, factor=2).exists("x.table")

    def test_another_raw_file_makes_it_missing(self, finished):
        OTHER.to_parquet(finished / "raw.parquet")
        assert not following(finished).exists("x.table")

    def test_a_raw_file_that_was_only_touched_changes_nothing(self, finished):
        os.utime(finished / "raw.parquet")
        assert following(finished).exists("x.table")

    def test_a_file_that_was_cut_short_is_missing(self, finished):
        os.truncate(finished / "table.parquet", 100)
        assert not following(finished).exists("x.table")

    def test_a_file_of_which_nothing_is_recorded_is_missing(self, finished):
        shutil.rmtree(finished / ".state")
        assert not following(finished).exists("x.table")

    def test_a_plain_run_does_not_ask(self, finished):
        assert following(finished, factor=3, going_on=False).exists("x.table")

    def test_a_kill_after_the_file_and_before_its_record_makes_it_missing(self, finished):
        catalog = following(finished, factor=3, going_on=False)

        def save_and_die() -> None:
            Path.write_text = lambda *_: os._exit(9)  # the record is the only text
            catalog.save("x.table", TABLE * 3)

        assert in_child(save_and_die) == 9
        assert pd.read_parquet(finished / "table.parquet").equals(TABLE * 3)
        for factor in (2, 3):
            assert not following(finished, factor=factor).exists("x.table")

    def test_a_change_reaches_what_is_made_of_it(self, tmp_path):
        TABLE.to_parquet(tmp_path / "raw.parquet")
        nodes = Pipeline(
            [
                Node(double, ["x.raw", "params:factor"], "x.table", name="double"),
                Node(both, "x.table", ["x.second", "x.record"], name="both"),
            ]
        )

        def catalog(factor: int, pipeline: Pipeline = nodes) -> RunCatalog:
            made = catalog_in(tmp_path)
            made["params:factor"] = factor
            made.follow(pipeline, going_on=True)
            return made

        first = catalog(2)
        first.save("x.table", TABLE)
        first.save("x.second", TABLE)
        first.save("x.record", {})
        assert all(catalog(2).exists(name) for name in nodes.all_outputs())
        assert not any(catalog(3).exists(name) for name in nodes.all_outputs())
        # A part of the pipeline takes the table as it is, whatever the parameters now are.
        assert catalog(3, nodes.only_nodes("both")).exists("x.second")


class TestFullDisk:
    @pytest.mark.parametrize("name", VALUES)
    def test_what_can_not_be_saved_is_one_line_and_the_earlier_file_is_intact(
        self, name, small_disk
    ):
        catalog = catalog_in(small_disk)
        before, after = VALUES[name]
        catalog.save(name, before)
        path = next(path for path in small_disk.iterdir() if path.is_file())
        content = path.read_bytes()
        filler = fill(small_disk)
        with pytest.raises(InputError) as caught:
            catalog.save(name, after)
        line = str(caught.value)
        assert str(path) in line
        assert "the disk is full; free space there" in line
        assert "\n" not in line
        assert path.read_bytes() == content
        assert not leftovers(small_disk)
        filler.unlink()
        catalog.save(name, after)

    def test_a_model_that_can_not_be_saved_leaves_the_earlier_one(
        self, random_checkpoint, small_disk
    ):
        weights = random_checkpoint.size_bytes
        subprocess.run(["mount", "-o", f"remount,size={weights * 3}", str(small_disk)], check=True)
        catalog = catalog_in(small_disk)
        model = random_checkpoint.load_model(torch.float32)
        catalog.save("x.model", LoadedModel(model, random_checkpoint.load_tokenizer()))
        content = {path.name: path.read_bytes() for path in (small_disk / "model").iterdir()}
        fill(small_disk)
        with pytest.raises(InputError, match=r"model: can't be written: the disk is full"):
            catalog.save("x.model", LoadedModel(model, random_checkpoint.load_tokenizer()))
        after = {path.name: path.read_bytes() for path in (small_disk / "model").iterdir()}
        assert after == content
        assert not leftovers(small_disk)

    def test_completions_that_were_stored_stay_and_a_line_cut_short_is_passed_over(
        self, small_disk
    ):
        def piece(key: str, length: int) -> dict[str, Completion]:
            return {key: Completion(key * length, "stop", 1, 1)}

        store = CompletionStore(small_disk / "completions")
        store.add(piece("a", 10))
        fill(small_disk)
        with pytest.raises(InputError, match=r"\.jsonl: can't be written: the disk is full"):
            store.add(piece("b", 100_000))
        found = CompletionStore(small_disk / "completions").find(["a", "b"])
        assert list(found) == ["a"]

    def test_a_training_state_that_can_not_be_saved_leaves_the_earlier_one(self, small_disk):
        model = torch.nn.Linear(100, 100)
        optimiser = torch.optim.AdamW(model.parameters())
        with state_kept_in(small_disk):
            save_state(small_disk, 1, model, optimiser, [], {})
        fill(small_disk)
        with (
            pytest.raises(InputError, match=r"disk: can't be written: the disk is full"),
            state_kept_in(small_disk),
        ):
            save_state(small_disk, 2, model, optimiser, [], {})
        assert load_latest_state(small_disk, model, optimiser, {}) == (1, [])

    def test_the_limit_on_a_files_size_is_told_as_such(self, tmp_path):
        code = (
            "import resource, signal, sys; sys.path.insert(0, sys.argv[2])\n"
            "from pathlib import Path; from test_disk_faults import catalog_in\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "catalog_in(Path(sys.argv[1])).save('x.text', 'a' * 100_000)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "text.html: can't be written: the limit on the size of a file" in ended.stderr
        assert not leftovers(tmp_path)


class TestReadOnly:
    def test_a_folder_that_can_not_be_written_is_named(self, tmp_path):
        catalog = catalog_in(tmp_path / "disk")
        with mounted(tmp_path / "disk", "size=1m"):
            catalog.save("x.table", TABLE)
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
            with pytest.raises(InputError, match=r"table\.parquet: .* read-only; make it writ"):
                catalog.save("x.table", OTHER)
            with pytest.raises(InputError, match=r"\.state: can't be written: .* read-only"):
                RunLock(tmp_path / "disk" / ".state").acquire()
            assert catalog.load("x.table").equals(TABLE)

    def test_a_folder_without_permission_is_named(self, tmp_path):
        catalog = catalog_in(tmp_path)
        catalog.save("x.table", TABLE)
        tmp_path.chmod(0o555)

        def save_as_somebody() -> None:
            if os.geteuid() == 0:
                os.seteuid(65534)  # the superuser may write everywhere
            with pytest.raises(InputError, match="permission is denied; make it accessible"):
                catalog.save("x.table", OTHER)

        assert in_child(save_as_somebody) == 0
        tmp_path.chmod(0o755)
        assert catalog.load("x.table").equals(TABLE)


class TestDamagedFiles:
    def test_an_output_cut_short_is_named_with_how_to_make_it_again(self, finished):
        os.truncate(finished / "table.parquet", 200)
        with pytest.raises(DatasetError) as caught:
            following(finished).load("x.table")
        line = str(caught.value)
        assert str(finished / "table.parquet") in line
        assert "can't be read" in line
        assert "remove it and go on with --only-missing-outputs" in line
        assert "\n" not in line

    def test_a_raw_file_cut_short_is_named_with_the_remedy(self, finished):
        os.truncate(finished / "raw.parquet", 200)
        with pytest.raises(DatasetError, match=r"raw\.parquet: can't be read: .*; put a whole one"):
            following(finished).load("x.raw")

    def test_a_training_state_cut_short_is_named_with_the_folder_to_delete(self, tmp_path):
        model = torch.nn.Linear(2, 2)
        optimiser = torch.optim.AdamW(model.parameters())
        save_state(tmp_path, 1, model, optimiser, [], {})
        os.truncate(tmp_path / "step-00000001" / "model.safetensors", 20)
        with (
            pytest.raises(InputError, match=r"a saved state can't be read .*; delete the folder"),
            state_kept_in(tmp_path),
        ):
            load_latest_state(tmp_path, model, optimiser, {})

    def test_weights_cut_short_are_no_checkpoint(self, random_checkpoint, tmp_path):
        folder = Path(shutil.copytree(random_checkpoint.folder, tmp_path / "model"))
        weights = folder / "model.safetensors"
        os.truncate(weights, weights.stat().st_size - 1)
        assert "model.safetensors is cut short" in missing_part(folder)
        dataset = CheckpointDataset(filepath=str(folder))
        assert not dataset.exists()
        with pytest.raises(DatasetError, match=r"cut short .*; run the node that makes it"):
            dataset.load()


@pytest.fixture
def ingest(kedro_run) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the first two nodes of a run of that name."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        nodes = "data_ingest.build_principles,data_ingest.build_queries"
        return kedro_run(
            "--env", "test", "--nodes", nodes, "--params", f"run_name={name}", *arguments
        )

    return run


def error_line(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr, ended.stderr[-3000:]
    line = ended.stderr.rstrip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


HOLD = """
import sys, time
from pathlib import Path
from sami_pipeline.session.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_two_runs_at_once_in_one_folder_are_refused_and_a_kill_frees_it(
    ingest, run_name, project_folder
):
    name, other = run_name(), run_name()
    state = project_folder / "data" / "08_reporting" / name / "mt_bench" / ".state"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, state], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        line = error_line(ingest(name))
        assert f"{name}/mt_bench: another run is writing there (process {holder.pid} on " in line
        assert "--params run_name=NAME" in line
        assert ingest(other).returncode == 0, "a run of another name is not in the way"
    finally:
        holder.kill()
        holder.wait()
    lock = RunLock(state)
    lock.acquire()  # the kernel has given it back
    lock.release()


def test_on_a_full_disk_a_run_ends_in_one_line_and_goes_on_when_there_is_space(
    ingest, run_name, project_folder
):
    name = run_name()
    folder = project_folder / "data" / "03_primary" / name
    with mounted(folder, "size=1m"):
        assert ingest(name).returncode == 0
        tables = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
        assert len(tables) == 2
        filler = fill(folder)
        line = error_line(ingest(name))
        assert any(str(path) in line for path in tables)
        assert "the disk is full" in line
        assert {path: path.read_bytes() for path in tables} == tables
        filler.unlink()
        assert ingest(name, "--only-missing-outputs").returncode == 0
        assert {path: path.read_bytes() for path in tables} == tables
