"""The processes around vLLM, as far as they need none: it is not installed here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sami_pipeline.engines import EngineParameters, VllmParameters, open_engine, vllm_server
from sami_pipeline.errors import EngineError, InputError
from sami_pipeline.processes import root_cause


def gone(pid: int, seconds: float = 10) -> bool:
    """Return whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("no/such/python", r"engine\.vllm\.python: .*no/such/python does not exist; .*`make vllm`"),
        (sys.executable, r"engine\.vllm\.python: .* has no vLLM; run `make vllm`"),
        (None, r"engine\.vllm\.python: .* has no vLLM; run `make vllm`"),
    ],
)
def test_interpreter_without_vllm_is_one_clear_error(
    random_checkpoint, tmp_path, monkeypatch, python, message
):
    monkeypatch.setattr(vllm_server, "PROJECT_FOLDER", tmp_path)
    parameters = EngineParameters(kind="vllm", vllm=VllmParameters(python=python))
    with pytest.raises(InputError, match=message) as caught:
        open_engine(parameters, random_checkpoint.folder)
    assert "\n" not in str(caught.value)


def test_environment_that_make_vllm_made_is_taken_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "PROJECT_FOLDER", tmp_path)
    assert vllm_server.interpreter(None) == sys.executable
    made, other = tmp_path / ".venv-vllm" / "bin" / "python", tmp_path / "other"
    made.parent.mkdir(parents=True)
    made.touch()
    other.touch()
    assert vllm_server.interpreter(None) == str(made)
    assert vllm_server.interpreter("other") == vllm_server.interpreter(str(other)) == str(other)


def test_failed_start_is_one_line_that_names_the_log_and_leaves_nothing_running(random_checkpoint):
    before = list(vllm_server._servers)
    with pytest.raises(EngineError, match="No module named 'vllm'; its log: ") as caught:
        parameters = VllmParameters(python=sys.executable)
        vllm_server.acquire(parameters, "float32", random_checkpoint.folder, "fingerprint")
    message = str(caught.value)
    assert "\n" not in message
    log = Path(message.rpartition("its log: ")[2])
    assert "Traceback" in log.read_text(), "what vLLM prints goes to the log"
    log.unlink()
    assert vllm_server._servers == before


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_worker_is_one_line_that_names_signal_and_log(signal_number):
    worker = vllm_server._Worker(sys.executable, {})
    worker._process.send_signal(signal_number)
    with pytest.raises(
        EngineError, match=f"ended by {signal_number.name}.*; its log: {worker.log}"
    ):
        list(worker.messages())
    worker.end(keep_log=False)
    assert not worker.log.exists()


def test_worker_ends_when_the_process_that_started_it_is_killed():
    code = (
        "import sys, time; from sami_pipeline.engines import vllm_server;"
        "worker = vllm_server._Worker(sys.executable, {}); worker.log.unlink();"
        "print(worker._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.kill()
    parent.wait()
    assert gone(pid)


def test_worker_finds_no_module_of_this_project_in_the_place_of_another():
    worker = vllm_server._WORKER
    code = (
        f"import runpy, sys; sys.argv = [{str(worker)!r}, '--version']; sys.path[0] = "
        f"{str(worker.parent)!r}; runpy.run_path(sys.argv[0]); import store"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "No module named 'store'" in done.stderr


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0,1", "2,3"]), ("4,5,6,7", ["4,5", "6,7"])]
)
def test_copies_of_a_model_have_gpus_of_their_own(monkeypatch, visible, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    parameters = VllmParameters(
        tensor_parallel_size=2, data_parallel_size=2, environment=environment
    )
    given = [each["CUDA_VISIBLE_DEVICES"] for each in vllm_server._environments(parameters)]
    assert given == expected


def test_settings_of_the_engine_are_not_given_twice():
    with pytest.raises(ValueError, match="dtype, model can't be given here"):
        VllmParameters(arguments={"model": "x", "dtype": "auto"})


@pytest.mark.parametrize(
    ("file", "change", "same"),
    [
        ("config.json", {"use_cache": False, "transformers_version": "5.0.0"}, True),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, True),
        ("generation_config.json", {"temperature": 0.3}, True),
        ("config.json", {"rms_norm_eps": 1e-5}, False),
        ("config.json", {"num_hidden_layers": 3}, False),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}, False),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, False),
    ],
)
def test_weights_are_exchanged_between_models_that_compute_alike(
    random_checkpoint, tmp_path, file, change, same
):
    folder = shutil.copytree(random_checkpoint.folder, tmp_path / "model")
    content = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(content | change))
    one, other = (vllm_server.architecture(each) for each in (random_checkpoint.folder, folder))
    assert (one == other) == same


def test_a_model_over_machines_reaches_vllm_as_it_is_asked_for():
    over_machines = VllmParameters(
        tensor_parallel_size=8,
        distributed_executor_backend="ray",
        arguments={"pipeline_parallel_size": 2},
    )
    arguments = vllm_server._arguments(over_machines, "bfloat16")
    assert arguments["distributed_executor_backend"] == "ray"
    assert arguments["tensor_parallel_size"] == 8
    assert arguments["pipeline_parallel_size"] == 2
    # One process asks; Ray starts the others where their GPUs are.
    assert len(vllm_server._environments(over_machines)) == 1


def test_root_cause_is_the_last_error_that_points_to_no_other(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "(Worker) ERROR 11-22 [x.py:1] RuntimeError: no such kernel\n"
        "(EngineCore) ERROR RuntimeError: Worker failed, see the stack trace for the root cause\n"
        "vllm.v1.engine.exceptions.EngineDeadError: See stack trace (above) for the root cause.\n"
        "(EngineCore) INFO shutting down\n"
    )
    assert root_cause(log) == "RuntimeError: no such kernel"
