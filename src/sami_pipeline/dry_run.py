"""A dry run: what an experiment would need, found without weights, data or results.

Every model is built from its configuration at full size on the meta device, prompts are rendered
and measured, a training step is taken on tensors without data (``core.memory``), and each stage
gets its memory and a rough time. What does not fit is refused before anything is computed.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.engines import EngineParameters
from sami_pipeline.engines.registry import engine_kinds
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.workload import Workload
from sami_pipeline.models.checkpoints import CheckpointError, ModelSource, import_model
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.models.tokens import TextEncoder
from sami_pipeline.parameters import (
    HOSTED,
    WORKED_SOLUTIONS,
    DryRunParameters,
    ExperimentParameters,
)
from sami_pipeline.principles.constitutions import Use, format_statements, wording
from sami_pipeline.training.baselines.record import function
from sami_pipeline.training.baselines.registry import SAMI, baselines, sami_models

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from sami_pipeline.core.memory import StepMemory

ARCHITECTURES = Path("data/01_raw/architectures")
# Of a prompt whose tokenizer is not at hand; English takes about four.
CHARACTERS_PER_TOKEN = 3
_GB = 1e9


@dataclass(frozen=True)
class Architecture:
    """A model without its weights.

    Attributes:
        name: as the parameters call it.
        source: where it comes from, as written.
        config: of transformers.
        tokenizer: None where it could not be had; ``note`` says why.
        note: what is to be said of it.
    """

    name: str
    source: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    note: str = ""

    @property
    def context(self) -> int:
        """The most tokens of prompt and response together."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or 2**31

    def cache_bytes(self, tokens: int) -> int:
        """Return what the keys and values of a text take in 16 bits, in bytes."""
        config = self.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        window = getattr(config, "sliding_window", None) or tokens
        return 2 * config.num_hidden_layers * heads * size * min(tokens, window) * 2


@dataclass(frozen=True)
class Stage:
    """What a stage needs of each GPU, in bytes, and about how long it takes.

    Attributes:
        name: the stage and the model in it.
        parts: weights, gradients, optimiser, activations and cache.
        seconds: rough, an upper bound in tokens.
        shape: what is computed at once, in words.
        remedy: what to change where it does not fit.
        gpus: how many take part.
        states: bytes of one saved training state.
        kept: bytes of what stays on disk besides: a checkpoint, or completions.
    """

    name: str
    parts: Mapping[str, int]
    seconds: float
    shape: str
    remedy: str
    gpus: int = 1
    states: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        """Bytes of one GPU."""
        return sum(self.parts.values())

    @property
    def disk(self) -> int:
        """Bytes on disk while it goes on."""
        return _STATES_AT_ONCE * self.states + self.kept


@dataclass
class DryRun:
    """The outcome: models, stages, the memory and the disk that there are, and what is wrong."""

    experiment: str
    architectures: list[Architecture]
    sizes: dict[str, int]
    stages: list[Stage] = field(default_factory=list)
    memory: float = 0.0
    memory_of: str = ""
    disk: float = 0.0
    disk_of: str = ""
    imported: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def disk_left(self) -> int:
        """Bytes on disk after the run: models that were imported and trained, and texts."""
        return self.imported + sum(stage.kept for stage in self.stages)

    @property
    def disk_needed(self) -> int:
        """Bytes on disk at the most: a training's states are removed when its model is saved."""
        states = max((stage.disk - stage.kept for stage in self.stages), default=0)
        return states + self.disk_left

    def text(self) -> str:
        """Return models and stages as text."""
        lines = [f"Dry run of {self.experiment}: nothing is trained, written or overwritten", ""]
        for model in self.architectures:
            config = model.config.get_text_config()
            lines.append(
                f"  {model.name}: {model.source}, {self.sizes[model.name] / 1e9:.2f}e9 parameters, "
                f"{config.num_hidden_layers} layers, vocabulary {config.vocab_size}, "
                f"context {model.context}"
            )
            lines.append(f"    {model.note or 'tokenizer, chat template and prompts checked'}")
        table = pd.DataFrame(
            [
                {"stage": stage.name, "GPUs": stage.gpus}
                | {name: stage.parts.get(name, 0) / _GB for name in _PARTS}
                | {
                    "total": stage.total / _GB,
                    "disk": stage.disk / _GB,
                    "hours": stage.seconds / 3600,
                }
                for stage in self.stages
            ]
        )
        lines += ["", f"Each GPU in GB (10^9 bytes), of {self.memory / _GB:.1f} ({self.memory_of})"]
        lines.append(table.to_string(index=False, float_format="{:.2f}".format))
        lines += [f"  {stage.name}: {stage.shape}" for stage in self.stages]
        lines += [
            f"  {stage.name}: on disk a checkpoint of {stage.kept / _GB:.2f} GB, and before it up "
            f"to {_STATES_AT_ONCE} states of {stage.states / _GB:.2f} GB"
            for stage in self.stages
            if stage.states
        ]
        needed, free = self.disk_needed / _GB, self.disk / _GB
        if self.stages:
            most = max(self.stages, key=lambda stage: stage.total)
            lines.append(
                f"Memory at the most: {most.total / _GB:.2f} GB ({most.name}), besides libraries"
            )
        lines.append(
            f"On disk at the most: {needed:.2f} GB of {free:.1f} ({self.disk_of}); "
            f"{self.disk_left / _GB:.2f} GB stay after the run"
        )
        return "\n".join(lines) + "\n"


_PARTS = ("weights", "gradients", "optimiser", "activations", "gathered", "cache", "copy")
# Of a weight that is written when a model is imported; files of other kinds are linked.
_IMPORTED_BYTES = {"gguf": 4, "random": 4}
# The last two are kept while another is written.
_STATES_AT_ONCE = 3
# Of a stored completion: its key, its numbers, and of its text about five bytes a token.
_COMPLETION_BYTES, _TOKEN_BYTES = 400, 5


def examine(
    name: str,
    experiment: ExperimentParameters,
    principles: pd.DataFrame,
    templates: Mapping[str, PromptTemplate],
    assumptions: DryRunParameters,
    workload: Workload,
) -> DryRun:
    """Return what an experiment would need, and what is wrong with it.

    Args:
        name: of the experiment.
        experiment: its parameters.
        principles: one row a principle.
        templates: generation_prompt, training_prompt and evaluation_prompt.
        assumptions: the machine, and the length of queries.
        workload: how much it trains on and writes.

    Raises:
        InputError: a model's configuration is nowhere to be had.
    """
    from sami_pipeline.core.memory import empty_model

    opened = {
        model: open_architecture(model, source)
        for model, source in experiment.models.sources.items()
        if source.kind != "answers"
    }
    sizes = {
        model: sum(p.numel() for p in empty_model(architecture.config).parameters())
        for model, architecture in opened.items()
    }
    memory, memory_of = _memory(assumptions)
    disk, disk_of = _disk(assumptions)
    outcome = DryRun(
        name, list(opened.values()), sizes, memory=memory, memory_of=memory_of,
        disk=disk, disk_of=disk_of,
        imported=sum(
            _IMPORTED_BYTES.get(source.kind, 0) * sizes.get(model, 0)
            for model, source in experiment.models.sources.items()
        ),
    )  # fmt: skip
    plan = _Plan(name, experiment, principles, templates, assumptions, opened, outcome, workload)
    for architecture in opened.values():
        plan.check_tokenizer(architecture)
    plan.generation()
    plan.training()
    plan.written()
    for stage in outcome.stages:
        if stage.total > memory:
            outcome.faults.append(
                f"{stage.name}: takes {stage.total / _GB:.1f} GB of each GPU, and there are "
                f"{memory / _GB:.1f} GB ({memory_of}); {stage.remedy}"
            )
    if outcome.disk_needed > disk:
        outcome.faults.append(
            f"disk: all together {outcome.disk_needed / _GB:.1f} GB are needed, and there are "
            f"{disk / _GB:.1f} GB ({disk_of}); free space, or save no states "
            f"({name}.training.sami.save_state_every: 0, save_state_minutes: null)"
        )
    return outcome


def _disk(assumptions: DryRunParameters) -> tuple[float, str]:
    """Return the bytes that a run may write, and what says so."""
    if assumptions.disk_gb is not None:
        return assumptions.disk_gb * _GB, f"dry_run_assumptions.disk_gb: {assumptions.disk_gb:g}"
    data = PROJECT_FOLDER / "data"
    return float(shutil.disk_usage(data).free), f"free in {data}"


def _memory(assumptions: DryRunParameters) -> tuple[float, str]:
    """Return the bytes that a stage may take, and whose they are."""
    import torch

    reserve = assumptions.reserve_gb * _GB
    less = f"less {assumptions.reserve_gb:g} reserved"
    if assumptions.gpu_memory_gb is not None:
        there_are = f"dry_run_assumptions.gpu_memory_gb: {assumptions.gpu_memory_gb:g}, {less}"
        return assumptions.gpu_memory_gb * _GB - reserve, there_are
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.total_memory - reserve, f"{properties.name}, {less}"
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine - reserve, f"this machine, which has no GPU, {less}"


def open_architecture(name: str, source: ModelSource) -> Architecture:
    """Return a model's configuration and tokenizer; weights are neither read nor fetched.

    Where the hub can't be reached the configuration is one of those that the project ships.

    Raises:
        InputError: it is in neither place.
    """
    from transformers import AutoConfig, AutoTokenizer

    if source.kind == "random":
        made = import_model(source, PROJECT_FOLDER)
        return Architecture(name, str(source), made.model.config, made.tokenizer)
    if source.kind == "gguf":
        path = PROJECT_FOLDER / source.location
        if not path.is_file():
            raise CheckpointError(f"model file {path}: does not exist; run `make setup`")
        options = {"gguf_file": path.name}
        config = AutoConfig.from_pretrained(path.parent, **options)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        return Architecture(name, str(source), config, tokenizer)
    if source.kind == "folder":
        folder: Path | None = PROJECT_FOLDER / source.location
        reason = ""
    else:
        folder, reason = _fetched(source)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"model folder {folder}: config.json is missing")
        config = AutoConfig.from_pretrained(folder)
        return Architecture(name, str(source), config, AutoTokenizer.from_pretrained(folder))
    shipped = PROJECT_FOLDER / ARCHITECTURES / source.location.partition("@")[0]
    if not (shipped / "config.json").is_file():
        raise InputError(
            f"models.sources.{name}: {source} can't be read from the hub ({reason}), and "
            f"{ARCHITECTURES} does not hold it; put its config.json there, or try again online"
        )
    note = (
        f"NOT CHECKED: tokenizer, chat template and exact prompt lengths, since the hub gave "
        f"nothing ({reason}); sizes are those of {ARCHITECTURES}"
    )
    return Architecture(name, str(source), AutoConfig.from_pretrained(shipped), None, note)


def _fetched(source: ModelSource) -> tuple[Path | None, str]:
    """Return the folder of a hub model's small files, or None and why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = source.location.partition("@")
    patterns = ["config.json", "generation_config.json", "token*", "*.model", "*.jinja",
                "special_tokens_map.json", "vocab.json", "merges.txt"]  # fmt: skip
    try:
        folder = snapshot_download(
            repository, revision=revision or "main", allow_patterns=patterns, etag_timeout=5
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        return None, type(error).__name__
    if not (Path(folder) / "config.json").is_file():
        return None, "the cache holds no config.json"
    return Path(folder), ""


@dataclass
class _Plan:
    """Fills a ``DryRun`` stage by stage."""

    name: str
    experiment: ExperimentParameters
    principles: pd.DataFrame
    templates: Mapping[str, PromptTemplate]
    assumptions: DryRunParameters
    opened: Mapping[str, Architecture]
    outcome: DryRun
    workload: Workload
    # SAMI after SFT takes the step that SAMI takes, and DPO after SFT that of DPO.
    sami_step: StepMemory | None = None
    baseline_steps: dict[tuple[str, int], StepMemory] = field(default_factory=dict)

    def check_tokenizer(self, model: Architecture) -> None:
        """Note what is wrong with a model's tokenizer."""
        tokenizer, faults = model.tokenizer, self.outcome.faults
        if tokenizer is None:
            return
        where = f"{self.name}.models.sources.{model.name}"
        rows = model.config.get_text_config().vocab_size
        if max(tokenizer.get_vocab().values()) >= rows:
            faults.append(
                f"{where}: the tokenizer has ids up to {max(tokenizer.get_vocab().values())}, the "
                f"embedding {rows} rows; take the tokenizer that belongs to the model"
            )
        if tokenizer.eos_token_id is None:
            faults.append(f"{where}: the tokenizer has no end-of-sequence token; set eos_token")

    def prompt_tokens(self, model: Architecture, template: str, turns: int = 1) -> tuple[int, int]:
        """Return the longest prompt without earlier answers, and its constitutions, in tokens."""
        constitution = self._longest_constitution(template)
        prompt = self.templates[template].build(
            [""] * turns, [""] * (turns - 1), constitution=constitution
        )
        queries = turns * self.assumptions.query_tokens
        if model.tokenizer is None:
            texts = [prompt.text or "".join(content for _, content in prompt.messages)]
            lengths = [math.ceil(len(t) / CHARACTERS_PER_TOKEN) for t in (*texts, constitution)]
            return lengths[0] + queries, lengths[1]
        encoder = TextEncoder(model.tokenizer, self.experiment.models.chat)
        ids = encoder.encode(prompt).ids
        begin = model.tokenizer.bos_token_id
        if begin is not None and ids[:2] == [begin, begin]:
            self.outcome.faults.append(
                f"{self.name}.{template}: the prompt of {model.name} begins with two "
                "beginning-of-sequence tokens; leave one out of the template"
            )
        own = model.tokenizer(constitution, add_special_tokens=False)["input_ids"]
        return len(ids) + queries, len(own)

    def _longest_constitution(self, template: str) -> str:
        """Return the longest constitution that is put into a template, in its longest wordings."""
        uses: list[Use] = ["training"]
        if template == "evaluation_prompt":
            evaluation = getattr(self.experiment, "evaluation", None)
            again = evaluation is not None and evaluation.trained_wording
            uses = ["training", "evaluation"] if again else ["evaluation"]
        texts = []
        for use, (_, rows) in itertools.product(uses, self.principles.groupby("category")):
            longest = {key: max(each, key=len) for key, each in wording(rows, use).items()}
            for stance in ("principle", "antithesis"):
                stances = [(principle, stance) for principle in rows["principle"]]
                texts.append(format_statements(stances, longest))
        return max(texts, key=len)

    def generation(self) -> None:
        """Add the stage in which the teacher writes."""
        teacher, settings = self.experiment.models.teacher, self.experiment.generation
        requests = self.workload.train + self.workload.held_out
        if teacher == HOSTED:
            served = settings.engine.served_model
            self.outcome.stages.append(
                _asking(f"generation ({teacher})", requests, served, settings.max_new_tokens)
            )
        if teacher in (WORKED_SOLUTIONS, HOSTED):
            return
        model = self.opened[teacher]
        prompt, _ = self.prompt_tokens(model, "generation_prompt")
        self._writing(
            f"generation ({teacher})", "generation", model, settings.engine, prompt,
            settings.max_new_tokens, requests,
        )  # fmt: skip

    def written(self) -> None:
        """Add the stages in which models under test, and a judge, write."""
        student = self.opened[self.experiment.models.student]
        for writing in self.workload.writings:
            stage = f"{writing.stage} ({writing.model})"
            if writing.engine.served_model:
                self.outcome.stages.append(
                    _asking(stage, writing.requests, writing.model, writing.max_new_tokens)
                )
                continue
            model = self.opened.get(writing.model, student)
            # A judge's prompt holds a question and a constitution too.
            prompt, _ = self.prompt_tokens(
                model, writing.template or "evaluation_prompt", turns=writing.turns
            )
            self._writing(
                stage, writing.group, model, writing.engine, prompt + writing.more_tokens,
                writing.max_new_tokens, writing.requests,
            )  # fmt: skip

    def _constitutions(self) -> int:
        return self.experiment.constitutions.n_constitutions

    def _writing(
        self,
        stage: str,
        group: str,
        model: Architecture,
        engine: EngineParameters,
        prompt: int,
        response: int,
        requests: int,
    ) -> None:
        context, limit = model.context, f"the context of {model.source}"
        kind, own = engine_kinds()[engine.kind], f"{group}.engine.{engine.kind}"
        if (allowed := kind.context(engine.settings) or context) < context:
            context, limit = allowed, f"{own}.max_model_len"
        if prompt + response > context:
            self.outcome.faults.append(
                f"{self.name}.{group}.max_new_tokens: the longest prompt of {stage} has {prompt} "
                f"tokens, with {response} new ones {prompt + response}, more than the {context} of "
                f"{limit}; lower max_new_tokens or dry_run_assumptions.query_tokens"
                + ("" if limit.startswith("the") else f", or raise {limit}")
            )
        size, sequence = self.outcome.sizes[model.name], model.cache_bytes(prompt + response)
        vocabulary = model.config.get_text_config().vocab_size
        layout, where = kind.layout(engine.settings), f"{self.name}.{own}"
        split, gpus = layout.split, layout.split * layout.copies
        weights = layout.bytes_a_weight * size // split
        at_once = min(layout.at_once, requests)
        if layout.memory_share is None:
            activations = 2 * at_once * vocabulary * 4 // split
        else:
            # It takes its share whole; below, what it must hold for one text of full length.
            share = layout.memory_share * (self.outcome.memory + self.assumptions.reserve_gb * _GB)
            activations = 2 * layout.at_once * vocabulary * 4 // split
            room = max(0.0, share - weights - activations) * split
            at_once = min(at_once, int(room // max(1, sequence)))
            if at_once < 1:
                self.outcome.faults.append(
                    f"{where}: {stage}: the weights leave no room for a cache of "
                    f"{sequence / _GB:.2f} GB; {layout.room.format(group=where)}"
                )
        remedy = layout.remedy.format(group=where)
        at_once = max(1, at_once)
        parts = {
            "weights": weights,
            "activations": activations,
            "cache": at_once * sequence // split,
        }
        rate = self.assumptions.teraflops * 1e12 * self.assumptions.utilisation * gpus
        reading = self.assumptions.bandwidth_gb_per_s * _GB * self.assumptions.utilisation * split
        steps = math.ceil(requests * split / (at_once * gpus)) * response
        seconds = 2 * size * requests * (prompt + response) / rate
        seconds += steps * (2 * size + at_once * sequence) / reading
        shape = (
            f"{requests} responses of at most {response} tokens to prompts of at most {prompt}, "
            f"{at_once} at once"
        )
        self.outcome.stages.append(
            Stage(stage, parts, seconds, shape, remedy, gpus, kept=_stored(requests, response))
        )

    def training(self) -> None:
        """Add SAMI's training and that of the baselines."""
        student = self.opened[self.experiment.models.student]
        training = self.experiment.training
        launch = getattr(training, "launch", None)
        processes = getattr(launch, "num_processes", 1)
        config = self.experiment.iterations.training_config(
            training.sami, self.experiment.iterations.count
        )
        prompt, own = self.prompt_tokens(student, "training_prompt")
        response = self.experiment.generation.max_new_tokens + 1  # end of sequence
        if prompt + response > student.context:
            self.outcome.faults.append(
                f"{self.name}.generation.max_new_tokens: prompt and response of training have "
                f"{prompt + response} tokens, more than the context of {student.source}, "
                f"{student.context}; lower it"
            )
        shape = Shape(prompt, own, response, self._constitutions())
        steps = optimiser_steps(self.workload.train // self._constitutions(), config)
        for name in self.experiment.trained_models():
            for replicate, seed in self.experiment.replicates(name).items():
                settings = config.replaced(seed=seed)
                self._training(name, replicate, student, settings, shape, steps, processes)

    def _training(
        self,
        name: str,
        replicate: str,
        student: Architecture,
        config: Any,
        shape: Shape,
        steps: int,
        processes: int,
    ) -> None:
        from sami_pipeline.core.memory import sami_step_memory
        from sami_pipeline.core.packing import packed_length

        grids = shape.grids(config, student.config.get_text_config().vocab_size)
        device = self._device()
        baseline = baselines().get(name)
        if baseline is not None and not baseline.is_sami:
            own = baseline.settings_in(self.experiment.training)
            grids = function(baseline.grids)(grids, own)
            step = (baseline.step_memory, packed_length(grids[0]))
            if step not in self.baseline_steps:
                self.baseline_steps[step] = function(baseline.step_memory)(
                    student.config, config, grids, device=device
                )
            memory = self.baseline_steps[step]
            processes, passes = 1, baseline.passes
        else:
            if self.sami_step is None:
                self.sami_step = sami_step_memory(
                    student.config, grids, config, device=device, processes=processes
                )
            memory = self.sami_step
            passes = 3 + (config.memory == "two_pass") + (config.kl_beta > 0)
        tokens, what = packed_length(grids[0]), shape.described(grids)
        passes += config.gradient_checkpointing
        seed = f", seed {config.seed}" if self.experiment.seeds > 1 else ""
        size = self.outcome.sizes[student.name]
        rate = self.assumptions.teraflops * 1e12 * self.assumptions.utilisation * processes
        seconds = 2 * passes * size * tokens * steps * config.batch_size / rate
        parts = {part: getattr(memory, part, 0) for part in _PARTS}
        # Gradients are as large as the weights that are trained.
        state = (memory.gradients + memory.optimiser) * processes if config.saves_states else 0
        if device == "cpu" and processes > 1:
            # Each process writes its part from a copy, while the training goes on.
            parts["copy"] = state // processes
        trained = self.experiment.iterations.count if replicate == SAMI else 1
        bytes_a_weight = 4 if config.weights == "float32" else 2
        self.outcome.stages.append(
            Stage(
                f"training ({replicate})", parts, seconds,
                f"{steps} steps of {config.batch_size} queries{seed}; {what}",
                self._training_remedy(name, config, size, memory, processes), processes,
                states=state, kept=bytes_a_weight * size * trained,
            )
        )  # fmt: skip

    def _device(self) -> Any:
        import torch

        gpu = self.assumptions.gpu_memory_gb is not None or torch.cuda.is_available()
        return "cuda" if gpu else "cpu"

    def _training_remedy(
        self, name: str, config: Any, size: int, memory: StepMemory, processes: int
    ) -> str:
        """Return the settings that save most, those first that lose nothing."""
        where, choices = f"{self.name}.training", []
        if not config.gradient_checkpointing:
            choices.append(f"{where}.sami.gradient_checkpointing: true")
        if config.grids_per_micro_batch > 1:
            choices.append(f"{where}.sami.grids_per_micro_batch: 1")
        if config.lora is None and config.weights == "float32":
            choices.append(
                f"{where}.sami.weights: bfloat16_remainder ({10 * size / _GB:.0f} GB with "
                f"optimiser: adamw, {8 * size / _GB:.0f} GB with rmsprop, both with "
                "optimiser_state: bfloat16)"
            )
        elif config.weights == "bfloat16_remainder" and config.optimiser_state == "float32":
            choices.append(f"{where}.sami.optimiser_state: bfloat16")
        if config.weights == "bfloat16_remainder" and config.optimiser == "adamw":
            choices.append(f"{where}.sami.optimiser: rmsprop")
        samis = name in sami_models()
        if config.lora is None and (samis or baselines()[name].follows_lora):
            choices.append(f"{where}.sami.lora ({4 * size / _GB:.0f} GB of weights)")
        if samis:
            choices.append(f"more than {processes} {where}.launch.num_processes")
        return "set " + ", or ".join(choices) if choices else "take a smaller model"


def optimiser_steps(grids: int, config: Any) -> int:
    """Return how many steps a training takes, of so many grids."""
    steps = math.ceil(grids / config.batch_size) * config.epochs
    return min(steps, config.max_steps or steps)


def _stored(requests: int, tokens: int) -> int:
    """Return the bytes that completions take on disk: in their store, and in a table."""
    return 2 * requests * (_COMPLETION_BYTES + _TOKEN_BYTES * tokens)


def _asking(stage: str, requests: int, served: str, tokens: int) -> Stage:
    """Return a stage that takes nothing here but disk: a server is asked."""
    shape = f"{requests} texts are asked of {served}, at its server"
    return Stage(stage, {}, 0.0, shape, "", 0, kept=_stored(requests, tokens))


@dataclass(frozen=True)
class Shape:
    """Longest prompt and response of a grid, in tokens.

    Attributes:
        prompt: of a prompt, its constitution included.
        own: of its constitution, which follows what the prompts share.
        response: of a response.
        n: constitutions and responses.
    """

    prompt: int
    own: int
    response: int
    n: int

    def grids(self, config: Any, vocabulary: int) -> Sequence[Any]:
        """Return the grids of a micro-batch."""
        from sami_pipeline.core.memory import example_grid

        count = min(config.grids_per_micro_batch, config.batch_size)
        grid = example_grid(self.prompt - self.own, self.own, self.response, self.n, vocabulary)
        return [grid] * count

    def described(self, grids: Sequence[Any]) -> str:
        """Return in words what is computed at once."""
        from sami_pipeline.core.packing import packed_length

        prompts, responses = (
            f"{count} {what}{'s' if count > 1 else ''}"
            for count, what in zip(grids[0].shape, ("prompt", "response"), strict=True)
        )
        return (
            f"grids of {prompts} of {self.prompt} tokens and {responses} of "
            f"{self.response}, {packed_length(grids[0])} tokens packed, {len(grids)} at once"
        )
