"""What an environment's catalog sets is used, or one line says why it is not."""

import os
import subprocess
import sys

import pytest
import yaml
from kedro.config import OmegaConfigLoader

from sami_pipeline.errors import InputError
from sami_pipeline.session import configuration

BASE = {
    "{experiment}.training_prompt": {"type": "a"},
    "{experiment}.generation_prompt": {"type": "a"},
    "mt_bench.generation_prompt": {"type": "b"},
    "math.problems": {"type": "c"},
}


@pytest.mark.parametrize(
    ("own", "unreached"),
    [
        ({"{experiment}.generation_prompt": {"type": "z"}}, ["mt_bench.generation_prompt"]),
        ({"{experiment}.training_prompt": {"type": "z"}}, []),
        ({"mt_bench.generation_prompt": {"type": "z"}}, []),
        # Both are set: what is meant for which experiment is said.
        ({"{experiment}.generation_prompt": {"type": "z"}, "mt_bench.generation_prompt": {"t": 1}},
         []),
        # A pattern that the base does not have is no setting of one that it has.
        ({"{experiment}.{name}": {"type": "z"}}, []),
    ],
)  # fmt: skip
def test_an_entry_that_a_name_of_the_base_hides_is_told_with_the_remedy(tmp_path, own, unreached):
    for environment, content in (("base", BASE), ("local", own)):
        path = tmp_path / environment / "catalog" / f"{environment}.yml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(content), "utf-8")
    loader = OmegaConfigLoader(str(tmp_path), **configuration.CONFIG_LOADER_ARGS)
    found = configuration.unreached(loader, configuration.read_files(loader))
    assert list(found) == unreached
    for name, line in found.items():
        assert line.startswith(f"{tmp_path}/local/catalog/local.yml: '{{experiment}}.")
        assert f"does not reach {name}, which {tmp_path}/base/catalog/base.yml names" in line
        assert f"add an entry {name} to local.yml" in line


def test_shipped_environments_reach_what_they_name(project_folder):
    for environment in ("paper", "test"):
        loader = OmegaConfigLoader(
            str(project_folder / "conf"), env=environment, **configuration.CONFIG_LOADER_ARGS
        )
        assert configuration.unreached(loader, configuration.read_files(loader)) == {}


@pytest.mark.parametrize("sign", "[]{}")
def test_a_path_that_kedro_reads_as_a_pattern_is_refused(tmp_path, sign):
    with pytest.raises(InputError, match=rf"the path holds \{sign}, which Kedro"):
        configuration.refuse_patterns(tmp_path, tmp_path / f"a{sign}b")
    configuration.refuse_patterns(tmp_path / "a (b) 'c' é")


def test_a_project_in_such_a_path_ends_in_one_line(tmp_path, project_folder):
    """Kedro finds no files there, and would say that there are no parameters."""
    project = tmp_path / "mine [1] {a}"
    (project / "src").mkdir(parents=True)
    for name in ("src/sami_pipeline", "conf", "data", "pyproject.toml"):
        (project / name).symlink_to(project_folder / name)
    finished = subprocess.run(
        [sys.executable, "-m", "kedro", "run", "--env", "test", "--pipelines", "mt_bench"],
        cwd=project, capture_output=True, text=True, timeout=120,
        env=os.environ | {"DO_NOT_TRACK": "1", "PYTHONPATH": str(project_folder / "src")},
    )  # fmt: skip
    assert finished.returncode != 0
    assert "Traceback" not in finished.stderr
    last = finished.stderr.rstrip().splitlines()[-1]
    assert last.startswith(f"Error: {project}: the path holds [ ] {{ }}, which Kedro reads as a")
    assert "move the project" in last
