"""Nothing from outside runs, no key is written down, and nothing that a model writes is markup."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_figures import verdicts

from sami_pipeline import figures, schemas
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.engines import (
    EngineParameters,
    GenerationRequest,
    SamplingParameters,
    VllmParameters,
    generate,
    open_model,
    vllm_server,
)
from sami_pipeline.engines.vllm_engine import trusting
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.statistics import win_rates
from sami_pipeline.models.checkpoints import (
    PROVENANCE_FILE,
    Checkpoint,
    CheckpointError,
    ModelSource,
    import_model,
)
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.session import configuration

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def own_code(random_checkpoint, tmp_path) -> tuple[Path, Path]:
    """A model folder with Python code of its own, and the file that exists once that has run."""
    folder = Path(shutil.copytree(random_checkpoint.folder, tmp_path / "own_code"))
    marker = tmp_path / "code_has_run"
    (folder / "mine.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, marker


def _source(folder: Path) -> ModelSource:
    return ModelSource.model_validate(f"folder:{folder}")


def test_code_of_a_model_is_not_run_and_the_parameter_is_named(own_code):
    folder, marker = own_code
    with pytest.raises(CheckpointError, match=r"auto_map: .*models\.trust_remote_code") as caught:
        import_model(_source(folder), Path())
    assert str(folder / "config.json") in str(caught.value)
    Checkpoint(folder).load_tokenizer()
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        Checkpoint(folder).load_model(torch.float32)
    assert not marker.exists()


def test_code_of_a_trusted_model_runs_where_it_is_imported_loaded_and_asked(own_code, tmp_path):
    folder, marker = own_code
    dataset = CheckpointDataset(filepath=str(tmp_path / "saved"))
    dataset.save(import_model(_source(folder), Path(), trust_remote_code=True))
    saved = dataset.load()
    assert saved.trust_remote_code
    request = GenerationRequest(Prompt(text="Say something."), SamplingParameters(4))
    with closing(open_model(EngineParameters(), saved)) as engine:
        (answer,) = generate(engine, [request], seed=0, description="Own code")
    assert answer.completion_tokens > 0
    assert marker.exists()
    assert type(saved.load_model(torch.float32)).__name__ == "MineForCausalLM"


def test_folder_from_elsewhere_cannot_trust_itself(own_code, random_checkpoint, tmp_path):
    folder, marker = own_code
    (folder / PROVENANCE_FILE).write_text('{"trust_remote_code": true}')
    with pytest.raises(CheckpointError, match="auto_map"):
        import_model(_source(folder), Path())
    # Nor one without code, for what may be put beside it later.
    plain = Path(shutil.copytree(random_checkpoint.folder, tmp_path / "plain"))
    (plain / PROVENANCE_FILE).write_text('{"trust_remote_code": true, "seed": 7}')
    (plain / "mine.py").write_text("raise SystemExit")
    dataset = CheckpointDataset(filepath=str(tmp_path / "imported"))
    dataset.save(import_model(_source(plain), Path()))
    loaded = dataset.load()
    assert not loaded.trust_remote_code
    assert loaded.provenance["seed"] == 7
    assert not (loaded.folder / "mine.py").exists()
    assert not marker.exists()


def test_vllm_reads_safetensors_and_runs_code_of_trusted_models_alone():
    arguments = vllm_server._arguments(VllmParameters(), "float32")
    assert arguments["load_format"] == "safetensors"
    assert "trust_remote_code" not in arguments
    own = VllmParameters(arguments={"max_num_seqs": 8})
    trusted = vllm_server._arguments(trusting(own), "float32")
    assert trusted["trust_remote_code"] is True
    assert trusted["max_num_seqs"] == 8
    assert vllm_server._arguments(own, "float32").get("trust_remote_code") is None


def test_pickled_weights_are_not_read_even_beside_safetensors(random_checkpoint, tmp_path):
    folder = Path(shutil.copytree(random_checkpoint.folder, tmp_path / "both"))
    marker = tmp_path / "unpickled"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save({"model.norm.weight": Bomb()}, folder / "pytorch_model.bin")
    replace(random_checkpoint, folder=folder).load_model(torch.float32)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        Checkpoint(folder).load_model(torch.float32)
    assert not marker.exists()


def test_run_whose_folder_is_a_link_is_refused(project_folder, tmp_path):
    layer = project_folder / "data" / "08_reporting"
    layer.mkdir(exist_ok=True)
    link = layer / f"pytest_{tmp_path.name}"
    configuration.refuse_links({"run_name": link.name})
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(InputError, match=f"run_name: .*{link.name} is a link"):
            configuration.refuse_links({"run_name": link.name})
    finally:
        link.unlink()


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_names_in_a_figure_end_no_script():
    """Plotly shows pseudo-HTML as text; the page around the figure must not see it as its own."""
    table = win_rates(verdicts("checklist", {f"{HOSTILE}/base": "wwtl"}))
    page = figures.standalone_html(figures.win_rates(table))
    assert "onerror" in page, "the name is drawn"
    assert "<img src=x" not in page
    assert "<script>alert" not in page


def test_texts_of_models_reach_no_figure():
    texts = {"answer", "response", "text", "prompt", "query", "question", "solution", "attempt"}
    drawn = (
        schemas.WinRates, schemas.Compliance, schemas.History, schemas.HeldOut, schemas.Accuracy,
        schemas.AccuracyDifference, schemas.Comparison,
    )  # fmt: skip
    for schema in drawn:
        assert not texts & set(schema.to_schema().columns), schema
