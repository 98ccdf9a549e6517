"""What differs between systems is hidden here, as it is missing there: macOS, Windows, no GPU."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sami_pipeline.code_versions import PACKAGE_FOLDER
from sami_pipeline.core.training import peak_memory
from sami_pipeline.datasets.whole_files import WholeFiles
from sami_pipeline.engines.transformers_engine import TransformersEngine, fastest_dtype
from sami_pipeline.errors import InputError
from sami_pipeline.files import _synchronise
from sami_pipeline.models.checkpoints import ModelSource
from sami_pipeline.models.devices import device_of
from sami_pipeline.processes import need_process_groups

IMPORT_ALL = """
import os, pkgutil, signal, sys
import psutil, torch.distributed.checkpoint, transformers.generation  # which ask for the system
sys.modules["resource"] = None
for name in ("SIGHUP", "SIGQUIT", "SIGKILL"):
    delattr(signal, name)
for name in ("killpg", "getpgrp", "sched_getaffinity", "sysconf", "O_DIRECTORY"):
    delattr(os, name)
import sami_pipeline
for module in pkgutil.walk_packages(sami_pipeline.__path__, "sami_pipeline."):
    if not module.name.endswith(("__main__", "vllm_worker")):
        __import__(module.name)
"""


def test_everything_is_imported_without_what_windows_lacks():
    finished = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=200
    )
    assert finished.returncode == 0, finished.stderr[-2000:]


def test_the_fastest_dtype_is_known_where_torch_has_no_onednn(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert fastest_dtype(torch.device("cpu")) == torch.float32
    assert fastest_dtype(torch.device("mps")) == torch.float32


def test_peak_memory_is_measured_where_there_is_no_resource_module(monkeypatch):
    measured = peak_memory(torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "resource", None)
    assert measured / 10 < peak_memory(torch.device("cpu")) <= measured * 1.5


def test_states_reach_the_disk_where_folders_can_not_be_opened(monkeypatch, tmp_path):
    (tmp_path / "state.json").write_text("{}", "utf-8")
    synchronised = []
    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a folder was opened"))
    monkeypatch.setattr(os, "fsync", synchronised.append)
    _synchronise(tmp_path)
    assert not synchronised
    _synchronise(tmp_path / "state.json")
    assert len(synchronised) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at Linux's open files")
def test_a_file_is_closed_before_it_is_renamed(monkeypatch, tmp_path):
    renamed = []
    replace = Path.replace

    def watched(path, target):
        names = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        renamed.append(str(path) in names)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    with WholeFiles().open(str(tmp_path / "a.txt"), "w", encoding="utf-8") as file:
        file.write("whole")
    assert renamed == [False]
    assert (tmp_path / "a.txt").read_text("utf-8") == "whole"


def test_groups_of_processes_are_refused_in_one_line_where_there_are_none(monkeypatch):
    need_process_groups("training.launch.num_processes")
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(InputError, match=r"^training.launch.num_processes: needs Linux or macOS"):
        need_process_groups("training.launch.num_processes")


def test_a_path_of_windows_is_a_location_as_it_is_written():
    source = ModelSource.model_validate(r"folder:C:\models\my model")
    assert source.location == r"C:\models\my model"


@pytest.mark.parametrize(
    ("there", "wanted", "device"),
    [
        ({}, "auto", "cpu"), ({"cuda"}, "auto", "cuda"), ({"mps"}, "auto", "cpu"),
        ({"mps"}, "mps", "mps"), ({"cuda"}, "cpu", "cpu"), ({"mps"}, "cuda", None),
        ({}, "mps", None),
    ],
)  # fmt: skip
def test_the_device_is_the_wanted_one_or_the_line_names_those_there_are(
    monkeypatch, there, wanted, device
):
    for name in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, name), "is_available", lambda name=name: name in there)
    if device is not None:
        assert device_of(wanted) == device
    else:
        with pytest.raises(InputError, match=rf"^device: {wanted} is not there, .* auto or one of"):
            device_of(wanted)


def test_an_engine_computes_on_the_device_that_it_is_given(monkeypatch, random_checkpoint):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = TransformersEngine(random_checkpoint.folder, device="cpu", dtype="float32")
    assert next(engine.model.parameters()).device.type == "cpu"


def _without_encoding(tree: ast.AST) -> list[int]:
    """Return the lines on which a text file is opened in the encoding of the system."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        name = call.func.id if isinstance(call.func, ast.Name) else name
        needed = {"read_text": 1, "write_text": 2}.get(name)
        keywords = {keyword.arg for keyword in call.keywords}
        if needed is not None and len(call.args) < needed and "encoding" not in keywords:
            lines.append(call.lineno)
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and a.value in _MODES]
        if name in ("open", "fdopen") and modes and "encoding" not in keywords:
            lines.append(call.lineno)
    return lines


_MODES = ("r", "w", "a", "x", "r+", "w+", "a+")


def test_text_files_are_read_and_written_as_utf_8():
    found = [
        f"{path.relative_to(PACKAGE_FOLDER)}:{line}"
        for path in sorted(PACKAGE_FOLDER.rglob("*.py"))
        for line in _without_encoding(ast.parse(path.read_text("utf-8")))
    ]
    assert not found
