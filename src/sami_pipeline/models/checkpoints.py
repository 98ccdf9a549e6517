"""Model folders in Hugging Face layout: where a model comes from, and how it is opened."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from safetensors import SafetensorError, safe_open

from sami_pipeline.errors import InputError, one_line
from sami_pipeline.models import gguf_files, hub
from sami_pipeline.models.devices import Device, device_of
from sami_pipeline.models.prompts import ChatParameters, check_template
from sami_pipeline.models.tokens import TextEncoder, end_token_ids

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PROVENANCE_FILE = "provenance.json"
_HUB_NAME = re.compile(r"^[\w][\w.-]*/[\w][\w.-]*(@[\w][\w./-]*)?$", re.ASCII)
_SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class CheckpointError(InputError):
    """A model folder cannot be used; the message names the folder, the fault and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole model folder on disk.

    Attributes:
        folder: Hugging Face layout: config.json, safetensors weights, tokenizer.
        trust_remote_code: whether Python code that the folder brings may run. Nothing in a folder
            that is imported can say so, only ``models.trust_remote_code``.
        chat: how the chat template is rendered.
    """

    folder: Path
    trust_remote_code: bool = False
    chat: ChatParameters = field(default_factory=ChatParameters)

    def load_model(self, dtype: torch.dtype, device: Device = "auto") -> PreTrainedModel:
        """Return the causal language model in ``dtype``, by default on the GPU if there is one."""
        model = load_causal_model(self.folder, dtype, self.trust_remote_code)
        return model.to(device_of(device))

    def load_config(self) -> PretrainedConfig:
        """Return the model's configuration."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer."""
        return load_tokenizer(self.folder, self.trust_remote_code)

    def load_encoder(self) -> TextEncoder:
        """Return what makes token ids of prompts and responses, and text of token ids."""
        tokenizer = self.load_tokenizer()
        ends = end_token_ids(self.folder, tokenizer, self.chat)
        return TextEncoder(tokenizer, self.chat, ends)

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
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def load_causal_model(
    folder: Path, dtype: torch.dtype, trust_remote_code: bool = False, **options: Any
) -> PreTrainedModel:
    """Return the model of a folder, every weight from its safetensors and finite.

    Raises:
        CheckpointError: a weight is missing, has another shape than config.json says, or is NaN or
            infinite. Without this transformers would draw missing weights at random.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code,
            output_loading_info=True, **options,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"model folder {folder}: {one_line(str(error))}") from error
    if absent := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"model folder {folder}: its weights lack {absent[0]} ({len(absent)} are missing); "
            "config.json describes another model"
        )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"model folder {folder}: {name}: holds NaN or infinity; take another checkpoint"
            )
    return model


def load_tokenizer(
    folder: Path, trust_remote_code: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder.

    Raises:
        CheckpointError: its files can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    # The tokenizers library raises bare Exception for what it can't read.
    except Exception as error:
        # transformers then takes the file for one of tiktoken's, and asks for that package.
        lacks = (folder / "tokenizer.model").is_file() and find_spec("sentencepiece") is None
        reason = (
            "the package sentencepiece is missing; install it: pip install sentencepiece"
            if lacks
            else one_line(str(error))
        )
        raise CheckpointError(
            f"model folder {folder}: its tokenizer can't be read ({reason})"
        ) from error


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
        tokenizer: saved with it.
        provenance: JSON-able facts of how it came to be.
        chat: how the chat template is rendered.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: Mapping[str, Any] = field(default_factory=dict)
    chat: ChatParameters = field(default_factory=ChatParameters)


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
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} names no shards (weight_map)"
        if outside := sorted(str(shard) for shard in shards if Path(str(shard)).name != shard):
            return f"{index.name} names {outside[0]!r}, which is no file of the folder"
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


def check_folder(
    folder: Path, *, trust_remote_code: bool = False, chat: ChatParameters | None = None
) -> None:
    """Check a model folder without loading the model.

    Reads its settings, its weights one tensor at a time, its tokenizer and its chat template, and
    compares them with each other.

    Args:
        folder: what is checked.
        trust_remote_code: the folder's own Python code may run.
        chat: how its chat template is rendered, if it is asked with chat prompts and the template
            must work.

    Raises:
        CheckpointError: one line naming the folder, the file and the remedy.
    """
    if fault := missing_part(folder):
        raise CheckpointError(
            f"model folder {folder}: {fault}; expected a Hugging Face folder with safetensors"
        )
    settings = {name: _settings(folder / name) for name in _SETTINGS}
    if not isinstance(settings["config.json"].get("model_type"), str):
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type: is missing; it says which model this is"
        )
    for name, values in settings.items():
        ends = values.get("eos_token_id")
        if not all(isinstance(each, int) for each in (ends if isinstance(ends, list) else [ends])
                   if each is not None):  # fmt: skip
            raise CheckpointError(
                f"{folder / name}: eos_token_id: must be a whole number or a list of them"
            )
        if "auto_map" in values and not trust_remote_code:
            raise CheckpointError(
                f"{folder / name}: auto_map: the model runs its own Python code, which is not "
                "run unless the model's name stands in models.trust_remote_code"
            )
    if trust_remote_code:
        return  # what follows would run that code
    _check_headers(folder)
    rows = _check_weights(folder)
    for path in sorted(folder.glob("*.safetensors")):
        state = path.stat()
        if name := _not_finite(path, state.st_size, state.st_mtime_ns):
            raise CheckpointError(f"{path}: {name}: holds NaN or infinity; take another checkpoint")
    tokenizer = load_tokenizer(folder)
    # A token that was added later, such as one for padding or images, may have no row: no text that
    # is encoded as text gives it.
    added = set(tokenizer.added_tokens_decoder)
    known = max((i for i in tokenizer.get_vocab().values() if i not in added), default=-1) + 1
    if known > rows:
        raise CheckpointError(
            f"model folder {folder}: its tokenizer has {known} tokens, but the model's embedding "
            f"{rows} rows; the tokenizer is another model's"
        )
    if chat is not None and tokenizer.chat_template:
        check_template(tokenizer, chat)
    if tokenizer.eos_token_id is None and not _ends(folder):
        raise CheckpointError(
            f"model folder {folder}: nothing ends its responses: the tokenizer has no "
            "end-of-sequence token; name one as eos_token in tokenizer_config.json"
        )


def _ends(folder: Path) -> bool:
    """Return whether a model's own settings say which token ends a response."""
    settings = (_settings(folder / name) for name in ("generation_config.json", "config.json"))
    return any(each.get("eos_token_id") is not None for each in settings)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no valid JSON ({error}); get the file again") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: holds no settings; get the file again")
    return settings


def _check_headers(folder: Path) -> None:
    """Refuse files that are no whole safetensors files, or hold too few weights."""
    tensors = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a mapping)
                    weights.get_slice(name).get_shape()
                    tensors += 1
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: is no whole safetensors file ({one_line(str(error))}); get it again"
            ) from error
    # Each layer has a weight; so many would take minutes to set up.
    layers = _settings(folder / "config.json").get("num_hidden_layers")
    if isinstance(layers, int) and layers > tensors:
        raise CheckpointError(
            f"{folder / 'config.json'}: num_hidden_layers: says {layers} layers, and there are "
            f"{tensors} weights; config.json describes another model"
        )


@cache
def _not_finite(path: Path, size: int, changed: int) -> str | None:
    """Return the first tensor of a file that holds NaN or infinity; a file is read once."""
    import torch

    with safe_open(path, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (not a mapping)
            tensor = weights.get_tensor(name)
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                return name
    return None


def _check_weights(folder: Path) -> int:
    """Let transformers load a folder without its numbers, and return its rows of the embedding.

    It knows the names that each architecture's weights have on disk, which may be others than in
    memory, and which package a quantised folder needs. Nothing is allocated.

    Raises:
        CheckpointError: it can't be loaded, or some weights are missing or have other shapes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    about = f"{folder / 'config.json'}: describes no causal language model that transformers knows"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # Each architecture has its own ways to fail on wrong settings.
    except Exception as error:
        raise CheckpointError(f"{about} ({one_line(str(error))})") from error
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its report would say the same in twenty lines
    logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, config=config, device_map="meta", use_safetensors=True,
            trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    # Each kind of quantisation has its own ways to miss its package or a GPU.
    except Exception as error:
        raise CheckpointError(
            f"model folder {folder}: transformers can't load it here ({one_line(str(error))})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    for name, has, wants in sorted(found["mismatched_keys"]):
        raise CheckpointError(
            f"model folder {folder}: {name}: has the shape {list(has)}, but config.json asks for "
            f"{list(wants)}"
        )
    absent = sorted(found["missing_keys"])
    if len(absent) == len(set(model.state_dict()) - set(model.all_tied_weights_keys)):
        raise CheckpointError(
            f"model folder {folder}: none of its weights belongs to the model that config.json "
            f"describes ({config.model_type})"
        )
    if absent:
        raise CheckpointError(
            f"model folder {folder}: its weights lack {absent[0]} ({len(absent)} are missing); "
            "config.json describes another model"
        )
    return model.get_input_embeddings().weight.shape[0]


def check_source(
    source: ModelSource,
    project_folder: Path,
    *,
    trust_remote_code: bool = False,
    chat: ChatParameters | None = None,
) -> None:
    """Check what of a source lies on this machine; see ``import_model`` and ``check_folder``."""
    path = project_folder / source.location
    if source.kind == "gguf":
        check_gguf(path)
    elif source.kind == "folder":
        check_folder(path, trust_remote_code=trust_remote_code, chat=chat)
    elif source.kind == "hub":
        hub.check(source.location, trust_remote_code=trust_remote_code)


def check_gguf(path: Path) -> gguf_files.GgufHeader:
    """Return the header of a GGUF file that transformers can load.

    Raises:
        CheckpointError: one line naming the file and the remedy.
    """
    if not path.is_file():
        raise CheckpointError(
            f"model file {path}: does not exist; run `make setup` to install the embedded model"
        )
    try:
        header = gguf_files.read_header(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"model file {path}: {error}; get it again") from error
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if header.architecture not in {*GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}:
        raise CheckpointError(
            f"model file {path}: its architecture {header.architecture!r} is none that "
            "transformers reads from GGUF; take the model as a folder with safetensors"
        )
    if not header.values.get("tokenizer.ggml.tokens"):
        raise CheckpointError(
            f"model file {path}: holds no tokenizer; take a file that does, or a folder with "
            "safetensors"
        )
    return header


class ModelSource(BaseModel):
    """Where a model comes from, written as ``kind:location`` in one string.

    * ``gguf:FILE``: quantised weights in one GGUF file, dequantised to fp32.
    * ``folder:PATH``: a Hugging Face folder with safetensors; its files are linked, not copied.
    * ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``: fetched into the hub's cache and linked.
    * ``answers:FILE``: no model but answers that were written elsewhere, for a model under test.
    * ``random:SEED``: a randomly initialised two-layer Llama with a byte-level tokenizer, for
      tests of the graph.
    """

    model_config = ConfigDict(
        frozen=True,
        # In conf/ it is a string; the reference of the parameters reads this.
        json_schema_extra=lambda schema: schema.update(type="string", properties={}),
    )

    kind: Literal["gguf", "folder", "hub", "answers", "random"]
    location: str

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        kind, _, location = value.partition(":")
        if kind not in ("gguf", "folder", "hub", "answers", "random") or not location:
            raise ValueError(
                f"{value!r} is no model source; write gguf:FILE, folder:PATH, hub:OWNER/NAME, "
                "answers:FILE or random:SEED"
            )
        if not location.isprintable():
            raise ValueError(f"{value!r}: holds control characters; remove them")
        if kind == "random" and not (location.isascii() and location.isdecimal()):
            raise ValueError(f"{value!r}: the seed of a random model must be a whole number")
        if kind == "random" and int(location[:20]) >= 2**63:
            raise ValueError(f"{value!r}: the seed of a random model must be below 2**63")
        if kind == "hub" and not _HUB_NAME.match(location):
            raise ValueError(f"{value!r}: write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
        return {"kind": kind, "location": location}

    def __str__(self) -> str:
        """Return the source as it is written."""
        return f"{self.kind}:{self.location}"


def import_model(
    source: ModelSource, project_folder: Path, *, trust_remote_code: bool = False
) -> Checkpoint | LoadedModel:
    """Return the model of a source, ready to be saved by the checkpoint dataset.

    Args:
        source: where the model comes from.
        project_folder: what relative paths are relative to.
        trust_remote_code: take the model's own Python code too, and let it run.

    Raises:
        CheckpointError: the source is missing or not whole, or has its own code that is not
            trusted.
    """
    if source.kind == "gguf":
        return _import_gguf(project_folder / source.location)
    if source.kind == "random":
        return _random_model(int(source.location))
    if source.kind == "hub":
        folder = hub.fetch(source.location, trust_remote_code=trust_remote_code)
    else:
        folder = project_folder / source.location
    check_folder(folder, trust_remote_code=trust_remote_code)
    return Checkpoint(folder, trust_remote_code)


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a GGUF file.

    Raises:
        CheckpointError: it can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
    # The tokenizers library raises bare Exception for what it can't read.
    except Exception as error:
        raise CheckpointError(
            f"model file {path}: its tokenizer can't be read ({one_line(str(error))}); take "
            "another file, or a folder with safetensors"
        ) from error


def _import_gguf(path: Path) -> LoadedModel:
    import torch
    from transformers import AutoModelForCausalLM

    check_gguf(path)
    tokenizer = load_gguf_tokenizer(path)
    if tokenizer.chat_template:
        check_template(tokenizer, ChatParameters())
    try:
        quantised, found = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, gguf_file=path.name, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    # Each architecture has its own ways to fail on tensors that do not fit.
    except Exception as error:
        raise CheckpointError(
            f"model file {path}: can't be loaded ({one_line(str(error))}); take another file, or "
            "a folder with safetensors"
        ) from error
    if absent := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"model file {path}: lacks {absent[0]} ({len(absent)} weights are missing); take "
            "another file"
        )
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
