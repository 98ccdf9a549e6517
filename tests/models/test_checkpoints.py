import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo import sentencepiece_tokenizer

from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.models.checkpoints import (
    Checkpoint,
    CheckpointError,
    LoadedModel,
    ModelSource,
    import_model,
    load_tokenizer,
    missing_part,
)

PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "extra.pkl")


def imported(source: str, project_folder: Path) -> Checkpoint | LoadedModel:
    return import_model(ModelSource.model_validate(source), project_folder)


@pytest.fixture
def folder(random_checkpoint, tmp_path) -> Path:
    """A whole model folder that a test may break."""
    return Path(shutil.copytree(random_checkpoint.folder, tmp_path / "model"))


def shard(folder: Path) -> list[Path]:
    """Split the weights of a folder over several files, and return them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    return shards


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


class TestMissingPart:
    def test_whole_folder_misses_nothing(self, folder):
        assert missing_part(folder) is None

    def test_whole_folder_of_several_shards_misses_nothing(self, folder):
        shard(folder)
        assert missing_part(folder) is None

    def test_no_folder(self, tmp_path):
        assert missing_part(tmp_path / "nowhere") == "the folder does not exist"

    def test_a_file_is_no_folder(self, folder):
        assert missing_part(folder / "config.json") == "the folder does not exist"

    def test_no_config(self, folder):
        (folder / "config.json").unlink()
        assert missing_part(folder) == "config.json is missing"

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        assert missing_part(folder) == "it holds no weights (model.safetensors)"

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt"])
    def test_pickled_weights_only(self, folder, name):
        (folder / "model.safetensors").rename(folder / name)
        assert "pickled weights only; convert them to safetensors" in missing_part(folder)

    def test_missing_shard_is_named(self, folder):
        gone = shard(folder)[1]
        gone.unlink()
        assert missing_part(folder) == f"the shard {gone.name} is missing"

    def test_no_tokenizer(self, folder):
        for path in folder.glob("token*"):
            path.unlink()
        assert missing_part(folder) == "it holds no tokenizer"


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folder_without_a_part_does_not_exist_and_is_not_loaded(folder, broken):
    dataset = CheckpointDataset(filepath=str(folder))
    assert dataset.exists()
    for path in folder.glob("token*" if broken == "tokenizer.json" else broken):
        path.unlink()
    assert not dataset.exists()
    with pytest.raises(DatasetError, match=str(folder)):
        dataset.load()


def test_saved_model_reloads_with_plain_transformers_and_gives_the_same_logits(tmp_path):
    made = imported("random:5", tmp_path)
    dataset = CheckpointDataset(filepath=str(tmp_path / "deep" / "model"))
    dataset.save(made)
    folder = dataset.load().folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("Hello, Größe!")["input_ids"]
    assert ids == made.tokenizer("Hello, Größe!")["input_ids"]
    assert torch.equal(logits(model, ids), logits(made.model, ids))
    text = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
    assert text.shape[1] > len(ids)
    assert tokenizer.chat_template == made.tokenizer.chat_template


def test_checkpoint_opens_its_own_model_and_tokenizer(random_checkpoint):
    model = random_checkpoint.load_model(torch.float32)
    ids = random_checkpoint.load_tokenizer()("Hello")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(random_checkpoint.folder)
    torch.testing.assert_close(logits(model.cpu(), ids), logits(plain, ids))
    assert random_checkpoint.load_model(torch.bfloat16).dtype == torch.bfloat16


def test_provenance_is_kept_beside_the_weights(tmp_path):
    dataset = CheckpointDataset(filepath=str(tmp_path / "model"))
    dataset.save(imported("random:7", tmp_path))
    assert dataset.load().provenance == {"source": "random", "seed": 7}


def test_random_model_depends_on_its_seed_and_leaves_the_callers_generator_alone(tmp_path):
    before = torch.get_rng_state()
    one, again, other = (imported(f"random:{seed}", tmp_path).model for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_folder_that_a_killed_save_left_behind_is_no_checkpoint_and_goes_at_the_next_save(
    random_checkpoint, tmp_path
):
    dataset = CheckpointDataset(filepath=str(tmp_path / "model"))
    abandoned = tmp_path / ".model.123.partial"
    shutil.copytree(random_checkpoint.folder, abandoned)
    bystander = tmp_path / ".model_2.123.partial"
    bystander.mkdir()
    assert not dataset.exists()
    dataset.save(random_checkpoint)
    assert dataset.exists()
    assert not abandoned.exists()
    assert bystander.exists(), "another model's save may be under way"
    assert {path.name for path in tmp_path.iterdir()} == {"model", bystander.name}


KILLED_SAVE = """
import os, sys
from pathlib import Path
from sami_pipeline.models.checkpoints import LoadedModel, ModelSource, import_model
from sami_pipeline.datasets import CheckpointDataset

class DyingTokenizer:
    def save_pretrained(self, folder):
        os._exit(9)  # as a kill does: nothing after this line runs

made = import_model(ModelSource.model_validate("random:1"), Path("."))
CheckpointDataset(filepath=sys.argv[1]).save(LoadedModel(made.model, DyingTokenizer()))
"""


def test_killed_save_leaves_the_earlier_checkpoint_as_it_was(random_checkpoint, tmp_path):
    dataset = CheckpointDataset(filepath=str(tmp_path / "model"))
    dataset.save(random_checkpoint)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    command = [sys.executable, "-c", KILLED_SAVE, str(tmp_path / "model")]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 9
    assert list(tmp_path.glob(".model.*.partial")), "the kill came while the model was written"
    after = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert after == before


def test_replacing_gives_the_new_model_and_leaves_nothing_else(random_checkpoint, tmp_path):
    dataset = CheckpointDataset(filepath=str(tmp_path / "model"))
    dataset.save(random_checkpoint)
    (tmp_path / "model" / "stale.txt").write_text("of the earlier model")
    dataset.save(imported("random:9", tmp_path))
    assert dataset.load().provenance["seed"] == 9
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert not (tmp_path / "model" / "stale.txt").exists()


def test_model_that_is_not_whole_is_refused_and_the_earlier_one_stays(
    random_checkpoint, folder, tmp_path
):
    dataset = CheckpointDataset(filepath=str(tmp_path / "saved"))
    dataset.save(random_checkpoint)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"saved: not saved, it holds no weights"):
        dataset.save(Checkpoint(folder))
    assert dataset.exists()


def test_imported_folder_is_linked_not_copied(folder, tmp_path):
    checkpoint = imported(f"folder:{folder}", tmp_path)
    dataset = CheckpointDataset(filepath=str(tmp_path / "saved"))
    dataset.save(checkpoint)
    weights = [each / "model.safetensors" for each in (folder, dataset.load().folder)]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino
    assert missing_part(dataset.load().folder) is None


def test_linked_weights_of_a_cache_of_symbolic_links_are_files(folder, tmp_path):
    """The hub's cache keeps symbolic links to blobs; a link to a link would break with it."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / f"{path.name}.blob")
        path.symlink_to(blobs / f"{path.name}.blob")
    dataset = CheckpointDataset(filepath=str(tmp_path / "saved"))
    dataset.save(Checkpoint(folder))
    assert not any(path.is_symlink() for path in dataset.load().folder.iterdir())
    assert dataset.load().load_tokenizer()("a")["input_ids"]


def test_training_an_imported_model_leaves_its_source_untouched(folder, tmp_path):
    before = (folder / "model.safetensors").read_bytes()
    dataset = CheckpointDataset(filepath=str(tmp_path / "saved"))
    dataset.save(imported(f"folder:{folder}", tmp_path))
    dataset.save(imported("random:3", tmp_path))
    assert (folder / "model.safetensors").read_bytes() == before


def test_no_pickle_is_ever_written(folder, tmp_path):
    for name in PICKLES:
        (folder / name).write_bytes(b"pickled")
    linked = CheckpointDataset(filepath=str(tmp_path / "linked"))
    linked.save(imported(f"folder:{folder}", tmp_path))
    made = CheckpointDataset(filepath=str(tmp_path / "made"))
    made.save(imported("random:0", tmp_path))
    for dataset in (linked, made):
        names = {path.name for path in dataset.load().folder.iterdir()}
        assert names.isdisjoint(PICKLES)
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        assert "model.safetensors" in names


def test_source_folder_is_found_from_the_project(folder):
    checkpoint = imported("folder:model", folder.parent)
    assert checkpoint.folder.samefile(folder)


def test_source_folder_without_weights_is_refused_in_one_line_that_names_it(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        imported(f"folder:{folder}", tmp_path)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert "it holds no weights" in str(error.value)


def test_missing_gguf_file_is_refused_in_one_line_that_names_it_and_the_remedy(tmp_path):
    with pytest.raises(CheckpointError) as error:
        imported("gguf:models/absent.gguf", tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "models" / "absent.gguf") in str(error.value)
    assert "make setup" in str(error.value)


def test_tokenizer_that_needs_an_absent_package_names_it(tmp_path, monkeypatch):
    """One of Mistral's own; without the package transformers asks for another one, tiktoken."""
    folder = tmp_path / "mistral"
    sentencepiece_tokenizer(folder)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError) as found:
        load_tokenizer(folder)
    assert str(found.value) == (
        f"model folder {folder}: its tokenizer can't be read (the package sentencepiece is "
        "missing; install it: pip install sentencepiece)"
    )


def test_index_without_its_first_shard_does_not_exist(folder):
    first = shard(folder)[0]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert first.name in index["weight_map"].values()
    first.unlink()
    assert not CheckpointDataset(filepath=str(folder)).exists()


@pytest.mark.parametrize(
    ("text", "kind", "location"),
    [
        ("gguf:a/b.gguf", "gguf", "a/b.gguf"),
        ("folder:/models/c:d", "folder", "/models/c:d"),
        ("hub:owner/name@v1", "hub", "owner/name@v1"),
        ("random:12", "random", "12"),
    ],
)
def test_source_is_read_from_one_string(text, kind, location):
    source = ModelSource.model_validate(text)
    assert (source.kind, source.location) == (kind, location)


@pytest.mark.parametrize("text", ["", "base", "gguf:", "torrent:x", "random:x", "random:-1"])
def test_string_that_is_no_source_is_an_error_that_repeats_it(text):
    with pytest.raises(ValidationError, match=re.escape(repr(text))):
        ModelSource.model_validate(text)


def test_parameters_are_counted_by_module_over_all_layers_and_shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    counts = Checkpoint(folder).parameters_by_module()
    assert sum(counts.values()) == sum(weight.numel() for weight in model.parameters())
    attention = [weight for name, weight in model.named_parameters() if ".self_attn." in name]
    assert counts["self_attn"] == sum(weight.numel() for weight in attention)
    assert counts["embed_tokens"] == model.model.embed_tokens.weight.numel()
    shards = shard(folder)
    assert Checkpoint(folder).parameters_by_module() == counts
    assert Checkpoint(folder).size_bytes == sum(path.stat().st_size for path in shards)


def test_preview_of_a_trained_model_is_its_loss_and_size(folder):
    history = pd.DataFrame({"step": [1, 2, 3], "loss": [0.7, 0.6, 0.4]})
    history.to_parquet(folder.parent / "model_history.parquet")
    preview = CheckpointDataset(filepath=str(folder), history="model_history.parquet").preview()
    (curve,) = preview["data"]
    assert (curve["x"], curve["y"]) == ([1, 2, 3], [0.7, 0.6, 0.4])
    size = (folder / "model.safetensors").stat().st_size / 1e6
    assert f"{size:.1f} MB" in preview["layout"]["title"]["text"]


def test_preview_of_an_imported_model_is_where_its_parameters_are(folder):
    dataset = CheckpointDataset(filepath=str(folder), history="model_history.parquet")
    (bars,) = dataset.preview()["data"]
    counts = Checkpoint(folder).parameters_by_module()
    assert dict(zip(bars["y"], bars["x"], strict=True)) == {
        module: count / 1e6 for module, count in counts.items()
    }


def test_model_that_is_not_there_has_no_preview(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        CheckpointDataset(filepath=str(tmp_path / "absent")).preview()
