"""Settings of the process work wherever work begins, and give way to a user's own."""

import os
import re
import subprocess
import sys

import pytest

from sami_pipeline import process_settings
from sami_pipeline.process_settings import threads_are_the_users, usable_cores

# Where work begins: a script, kedro (also in a notebook: its extension does the same), a worker.
BEGINNINGS = {
    "script": "import sami_pipeline",
    "kedro": "from kedro.framework.startup import bootstrap_project as b; b('.')\n"
    "import sami_pipeline.settings",
    "worker": "import sami_pipeline.training.worker",
}
FAULTS = """
import resource, numpy
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.ones(2**23)  # 64 MiB
before = faults()
for _ in range(10):
    numpy.ones(2**23)
print(faults() - before)
"""
ON_GLIBC = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")


def run(script: str, project_folder, **variables: str) -> subprocess.CompletedProcess:
    """Run a script in a process that has none of the variables but those given."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "ONEDNN_", "LRU_", "SAMI_PIPELINE_"))
    }
    return subprocess.run(
        [sys.executable, "-c", script], cwd=project_folder, env=clean | variables,
        capture_output=True, text=True, check=True,
    )  # fmt: skip


@ON_GLIBC
@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
def test_freed_memory_is_kept(beginning, project_folder):
    assert int(run(beginning + FAULTS, project_folder).stdout) < 2000
    theirs = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    # Ten times 64 MiB in pages of 4 KiB, or in huge ones.
    assert int(run(beginning + FAULTS, project_folder, **theirs).stdout) > 10 * 32
    assert int(run("import numpy" + FAULTS, project_folder).stdout) > 10 * 32


@ON_GLIBC
@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
def test_waiting_threads_soon_give_way_unless_the_user_says_otherwise(beginning, project_folder):
    def shown(**theirs: str) -> str:
        script = f"{beginning}\nimport torch"
        return run(script, project_folder, OMP_DISPLAY_ENV="verbose", **theirs).stderr

    own = shown()
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in own
    assert "GOMP_SPINCOUNT = '3000'" in own
    active = shown(OMP_WAIT_POLICY="ACTIVE")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in active
    assert int(re.search(r"GOMP_SPINCOUNT = '(\d+)'", active)[1]) > 1_000_000
    assert "GOMP_SPINCOUNT = '0'" in shown(OMP_WAIT_POLICY="PASSIVE")
    assert "GOMP_SPINCOUNT = '7'" in shown(GOMP_SPINCOUNT="7")


@ON_GLIBC
def test_memory_that_was_freed_goes_back_when_it_is_asked_for(project_folder):
    script = """
import sami_pipeline, numpy
from pathlib import Path
from sami_pipeline.process_settings import give_back_freed_memory
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
before = resident()
blocks = [numpy.ones(2**17) for _ in range(100)]
del blocks
kept = resident() - before
give_back_freed_memory()
print(kept, resident() - before)
"""
    kept, left = map(int, run(script, project_folder).stdout.split())
    assert kept > 60_000  # kB, of 100 MiB
    assert left < 10_000


@ON_GLIBC
def test_kernels_of_many_shapes_do_not_fill_the_memory(project_folder):
    script = """
import sami_pipeline, torch
from pathlib import Path
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
weight = torch.zeros(64, 64, dtype=torch.bfloat16)
inputs = torch.zeros(800, 64, dtype=torch.bfloat16)
torch.nn.functional.linear(inputs, weight)
before = resident()
for rows in range(1, 800):
    torch.nn.functional.linear(inputs[:rows], weight)
print(resident() - before)
"""
    theirs = dict.fromkeys(process_settings._KERNEL_CACHES, "1024")
    unlimited = int(run(script, project_folder, **theirs).stdout)
    if unlimited < 100_000:  # kB
        pytest.skip("products of this machine keep no kernels")
    assert int(run(script, project_folder).stdout) < 0.6 * unlimited


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_threads_are_no_more_than_the_cores_that_may_be_used(project_folder):
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import sami_pipeline, torch; print(torch.get_num_threads())"
    )
    assert run(script, project_folder).stdout == "1\n"
    assert run(script, project_folder, OMP_NUM_THREADS="2").stdout == "2\n"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8), ("?", 8)],
)
def test_cores_of_a_container_are_those_that_it_is_given(tmp_path, monkeypatch, limit, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert usable_cores(tmp_path) == expected
    assert usable_cores(tmp_path / "none") == 8


def test_threads_that_a_user_has_set_are_told_from_ours(monkeypatch):
    monkeypatch.setattr(process_settings, "usable_cores", lambda: 0)
    environment: dict[str, str] = {}
    assert not threads_are_the_users(environment)
    process_settings._limit_threads(environment)
    assert environment["OMP_NUM_THREADS"] == "0"
    assert not threads_are_the_users(environment)
    theirs = {"OMP_NUM_THREADS": "3"}
    process_settings._limit_threads(theirs)
    assert theirs == {"OMP_NUM_THREADS": "3"}
    assert threads_are_the_users(theirs)
