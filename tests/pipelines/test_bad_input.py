"""What a user sees who got a parameter, a file or a folder wrong: one line that says which."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def error_line(kedro_run, run_name) -> Callable[..., str]:
    """Return a function that runs the experiment, which must fail, and gives its error's line."""

    def run(*arguments: str, params: str = "") -> str:
        params = ",".join([f"run_name={run_name()}", *([params] if params else [])])
        finished = kedro_run("--env", "test", "--params", params, *arguments)
        assert finished.returncode != 0
        assert "Traceback" not in finished.stderr, finished.stderr[-3000:]
        lines = [line for line in finished.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, finished.stderr[-3000:]
        assert finished.stderr.rstrip().endswith(lines[0]), "the message is one line, the last"
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (
            "mt_bench.constitutions.n_constitutions=1",
            ["mt_bench.constitutions.n_constitutions", "2"],
        ),
        (
            "mt_bench.generation.engine.kind=telepathy",
            ["mt_bench.generation.engine.kind", "transformers"],
        ),
        (
            "mt_bench.training.sami.optimiser=sgd",
            ["mt_bench.training.sami", "optimiser", "adamw", "rmsprop"],
        ),
        ("mt_bench.generation.temprature=1", ["mt_bench.generation.temprature"]),
        ("mt_bench.models.sources.base=torrent:x", ["mt_bench.models.sources.base", "torrent:x"]),
    ],
)
def test_bad_parameter_is_named_in_full(error_line, params, named):
    line = error_line(params=params)
    for part in named:
        assert part in line


def test_unknown_model_under_test_is_named_with_the_known_ones(error_line, changed_conf):
    changes = {"mt_bench": {"models": {"under_test": ["base", "nobody"]}}}
    conf = changed_conf("parameters/mt_bench.yml", changes)
    line = error_line("--conf-source", str(conf))
    for part in ("mt_bench", "models.under_test", "'nobody'", "base, dpo, sami"):
        assert part in line


def test_model_folder_without_weights_is_named(error_line, random_checkpoint, tmp_path):
    folder = shutil.copytree(random_checkpoint.folder, tmp_path / "incomplete")
    (Path(folder) / "model.safetensors").unlink()
    line = error_line(params=f"mt_bench.models.sources.base=folder:{folder}")
    assert str(folder) in line
    assert "no weights" in line


def test_missing_gguf_file_is_named_with_the_remedy(error_line, tmp_path):
    path = tmp_path / "absent.gguf"
    line = error_line(params=f"mt_bench.models.sources.base=gguf:{path}")
    assert str(path) in line
    assert "make setup" in line


def test_bad_principle_is_named_with_its_file_and_field(error_line, changed_conf, tmp_path):
    folder = tmp_path / "principles"
    folder.mkdir()
    content = {"category": "writing", "principles": [{"id": "brief", "principle": "Be brief."}]}
    (folder / "mine.yml").write_text(yaml.safe_dump(content))
    entry = {
        "type": "partitions.PartitionedDataset",
        "path": str(folder),
        "filename_suffix": ".yml",
        "dataset": {"type": "yaml.YAMLDataset"},
    }
    conf = changed_conf("catalog/mine.yml", {"{experiment}.principle_files": entry})
    line = error_line("--conf-source", str(conf))
    for part in ("mine.yml", "principles.0.antithesis"):
        assert part in line


def test_bad_prompt_template_is_named_with_its_field(
    error_line, changed_conf, project_folder, tmp_path
):
    shipped = project_folder / "data" / "01_raw" / "prompt_templates" / "chat.yml"
    path = tmp_path / "mine.yml"
    content = yaml.safe_load(shipped.read_text("utf-8")) | {"turn": "{query}"}
    path.write_text(yaml.safe_dump(content))
    entry = {"type": "yaml.YAMLDataset", "filepath": str(path)}
    conf = changed_conf("catalog/mine.yml", {"mt_bench.generation_prompt": entry})
    line = error_line("--conf-source", str(conf))
    assert "turn: the placeholder {constitution} is missing" in line
