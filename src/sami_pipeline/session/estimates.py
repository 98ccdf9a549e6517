"""How long nodes will take that have not run here: the work in them, at a measured pace.

The work is counted in tokens from parameters, principles and prompt templates, as a dry run counts
it, without a tokenizer or a model. The pace is that of the same nodes in earlier runs on this
machine; else of alike ones, with the same model; else, for the embedded model on a CPU, that of a
matrix product which is timed for a second. Every node that ends corrects what is expected of the
others.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.dry_run import Shape, optimiser_steps
from sami_pipeline.inputs.embedded import FILES
from sami_pipeline.parameters import HOSTED, WORKED_SOLUTIONS, ExperimentParameters
from sami_pipeline.principles.constitutions import format_constitution
from sami_pipeline.reporting.record import Attempt, NodeRecord, Work, environment
from sami_pipeline.training.baselines.record import Baseline, function
from sami_pipeline.training.baselines.registry import baselines
from sami_pipeline.training.responses import USABLE

if TYPE_CHECKING:
    import pandas as pd

    from sami_pipeline.core.config import SamiTrainingConfig
    from sami_pipeline.engines import EngineParameters
    from sami_pipeline.evaluation.workload import Workload
    from sami_pipeline.models.checkpoints import ModelSource
    from sami_pipeline.models.prompts import PromptTemplate
    from sami_pipeline.parameters import TrainingParameters

logger = logging.getLogger(__name__)

# Counts that are not known before a model has written anything; of the embedded default, where
# answers come to 0.35 to 0.63 of their limit (docs/results.md).
_LENGTH, _USABLE = 0.5, 0.6
# Responses that are left out for being cut off are the long ones.
_LENGTH_OF_WHOLE = 0.25
_SOLUTION_TOKENS = 60
_QUERY_CHARACTERS, _CHARACTERS_PER_TOKEN, _MARKUP_TOKENS = 130, 4, 15
# What does not grow with the number of texts, in tokens for each that one may have: the last rows
# of a batch are written alone.
_LAST_ROWS = 30
# What a step costs besides its tokens, in tokens.
_STEP_TOKENS = 500
# Seconds that the embedded model takes for a token where matrix products run at `RATE` GFLOP/s;
# `product_rate` measures it. docs/report.md has the runs.
RATE = 130.0
_SECONDS = {"writing": 2.8e-3, "training": 2.9e-3}
# Seconds of nodes without a count that have not run here: unpacking a GGUF file, and others.
_IMPORT_SECONDS, _OTHER_SECONDS = 20.0, 0.5
_RAW = "data/01_raw"
_STAGES = {
    "held-out queries": ("respond_as_{}",),
    "evaluation": ("answer_as_{}", "attempt_as_{}"),
    "judge": ("ask_judge",),
    "second judge": ("ask_second_judge",),
}


@dataclass(frozen=True)
class Measured:
    """What is known of a node that has run here.

    Attributes:
        seconds: how long it took.
        work: how much it was; None where it was not counted.
    """

    seconds: float
    work: Work | None = None


def count_work(
    parameters: ExperimentParameters,
    workload: Workload,
    principles: pd.DataFrame,
    templates: Mapping[str, PromptTemplate],
    responses: pd.DataFrame | None = None,
) -> dict[str, Work]:
    """Return the work of every node with a model in it, by the last part of its name.

    Args:
        parameters: of the experiment.
        workload: how much it trains on and writes.
        principles: as from ``tabulate_principles``.
        templates: generation_prompt, training_prompt and evaluation_prompt.
        responses: see ``schemas.Responses``; None where they are not written yet.
    """
    prompts = {name: _prompt_tokens(each, principles) for name, each in templates.items()}
    models, generation = parameters.models, parameters.generation
    found = _training(parameters, workload, principles, prompts, responses)
    texts = workload.train + workload.held_out
    if models.teacher != WORKED_SOLUTIONS:
        node = "ask_hosted_teacher" if models.teacher == HOSTED else "write_responses"
        found[node] = _writing(
            texts, prompts["generation_prompt"], generation.max_new_tokens,
            _by(parameters, models.teacher, generation.engine),
        )  # fmt: skip
    for writing in workload.writings:
        prompt = prompts[writing.template or "evaluation_prompt"]
        work = _writing(
            writing.requests, prompt + _LENGTH * writing.more_tokens, writing.max_new_tokens,
            _by(parameters, writing.model, writing.engine),
        )  # fmt: skip
        found |= {name.format(writing.model): work for name in _STAGES[writing.stage]}
    return found


def _writing(texts: int, prompt: float, limit: int, by: str) -> Work:
    tokens = texts * (prompt + _LENGTH * limit) + _LAST_ROWS * limit
    return Work(kind="writing", by=by, tokens=tokens)


def _training(
    parameters: ExperimentParameters,
    workload: Workload,
    principles: pd.DataFrame,
    prompts: Mapping[str, float],
    responses: pd.DataFrame | None,
) -> dict[str, Work]:
    settings, n = parameters.training, parameters.constitutions.n_constitutions
    config = parameters.iterations.training_config(settings.sami, parameters.iterations.count)
    grids, response = workload.train / n, _LENGTH * parameters.generation.max_new_tokens
    if responses is not None:
        usable = responses[(responses["status"] == USABLE) & (responses["split"] == "train")]
        grids = max(1, usable.groupby(["query_id", "grid"]).ngroups)
        response = float(usable["completion_tokens"].mean()) if len(usable) else 1.0
    elif parameters.models.teacher == WORKED_SOLUTIONS:
        response = _SOLUTION_TOKENS
    elif not parameters.generation.keep_truncated:
        grids *= _USABLE
        response *= _LENGTH_OF_WHOLE / _LENGTH
    own = _constitution_characters(principles) / _CHARACTERS_PER_TOKEN
    shape = Shape(round(prompts["training_prompt"]), round(own), round(response), n)
    steps, found = optimiser_steps(round(grids), config), {}
    source = str(parameters.models.sources[parameters.models.student])
    for model in parameters.trained_models():
        tokens = _passes_of_a_query(baselines().get(model), settings, config, shape)
        queries = min(steps * config.batch_size, grids * config.epochs)
        work = Work(kind="training", by=source, tokens=queries * tokens + steps * _STEP_TOKENS)
        found |= {f"train_{name}": work for name in parameters.replicates(model)}
    return found


def _passes_of_a_query(
    baseline: Baseline | None,
    training: TrainingParameters,
    config: SamiTrainingConfig,
    shape: Shape,
) -> float:
    """Return the tokens of a query in a step, each as often as the model passes over it.

    Args:
        baseline: that is trained; None is SAMI.
        training: parameters of the experiment's training.
        config: SAMI's settings.
        shape: lengths of prompts and responses.
    """
    grids = shape.grids(config, 2)
    passes = 3 + (config.memory == "two_pass") + (config.kl_beta > 0)
    if baseline is not None and not baseline.is_sami:
        passes = baseline.passes
        grids = function(baseline.grids)(grids, baseline.settings_in(training))
    from sami_pipeline.core.packing import packed_length

    return packed_length(grids[0]) * (passes + config.gradient_checkpointing)


def known_models(parameters: ExperimentParameters) -> dict[str, ModelSource]:
    """Return the sources of models that can be timed before they have run, by ``Work.by``."""
    return {
        f"{source}{engine}": source
        for source in parameters.models.sources.values()
        for engine in ("", ", transformers")
    }


def _by(parameters: ExperimentParameters, model: str, engine: EngineParameters) -> str:
    if engine.served_model:
        return f"{engine.served_model} at a server"
    sources = parameters.models.sources
    return f"{sources.get(model, sources[parameters.models.student])}, {engine.kind}"


def _prompt_tokens(template: PromptTemplate, principles: pd.DataFrame) -> float:
    prompt = template.build([""], constitution="")
    text = prompt.text or "".join(content for _, content in prompt.messages)
    characters = len(text) + _constitution_characters(principles) + _QUERY_CHARACTERS
    return characters / _CHARACTERS_PER_TOKEN + _MARKUP_TOKENS


def _constitution_characters(principles: pd.DataFrame) -> float:
    return float(
        np.mean(
            [
                len(format_constitution([(name, stance) for name in rows["principle"]], rows))
                for _, rows in principles.groupby("category")
                for stance in ("principle", "antithesis")
            ]
        )
    )


@dataclass(frozen=True)
class Earlier:
    """What is known of earlier runs on this machine.

    Attributes:
        latest: when each node of this experiment last ran, by name.
        counted: all nodes that have a count, of every experiment.
        run: the one that most of the latest nodes ran in; "" without any.
        memory: the most resident memory that a node of that run had, in bytes; None if unknown.
    """

    latest: dict[str, Measured] = field(default_factory=dict)
    counted: list[Measured] = field(default_factory=list)
    run: str = ""
    memory: int | None = None


def earlier(folder: Path, nodes: Iterable[str]) -> Earlier:
    """Return what is known of earlier runs on this machine.

    Args:
        folder: the records of this run's nodes, RUN/EXPERIMENT/node_records; those of other runs
            and experiments stand near it.
        nodes: the experiment's, by name.
    """
    here, wanted, counted = environment(), set(nodes), []
    latest: dict[str, tuple[Any, Measured, str, int | None]] = {}
    for other in sorted(folder.parents[2].glob(f"*/*/{folder.name}")):
        for path in other.glob("*.json"):
            try:
                record = NodeRecord.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                continue
            last = record.attempts[-1]
            if last.outcome != "finished" or not _like(last, here):
                continue
            known = Measured(record.seconds, last.work)
            if last.work is not None and len(record.attempts) == 1:
                counted.append(known)
            if other.parent.name == folder.parent.name and path.stem in wanted:
                one = (last.started, known, other.parents[1].name, last.peak_memory_bytes)
                latest[path.stem] = max(latest.get(path.stem, one), one, key=lambda each: each[0])
    runs = [run for _, _, run, _ in latest.values()]
    most = max(sorted(set(runs)), key=runs.count) if runs else ""
    return Earlier(
        {name: known for name, (_, known, _, _) in latest.items()},
        counted,
        most,
        max((peak for *_, run, peak in latest.values() if run == most and peak), default=None),
    )


def _like(attempt: Attempt, here: Any) -> bool:
    there = attempt.environment
    return (there.processor, there.cores, there.gpus) == (here.processor, here.cores, here.gpus)


@dataclass
class Estimates:
    """Seconds that nodes will take, corrected by those that have ended.

    Attributes:
        work: of nodes with a model in them, by their whole name.
        before: what is known of nodes that ran earlier here, by their whole name.
        counted: what is known of all that ran here and were counted.
        sources: of models, by what ``Work.by`` says, for the first estimate.
        free: nodes whose outputs another run has made.
        begun: nodes that go on where an earlier attempt has stopped.
    """

    work: dict[str, Work] = field(default_factory=dict)
    before: dict[str, Measured] = field(default_factory=dict)
    counted: list[Measured] = field(default_factory=list)
    sources: dict[str, ModelSource] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    _ended: list[tuple[Work, float, float]] = field(default_factory=list)
    _rate: float | None = None

    def seconds(self, node: str) -> float | None:
        """Return how long a node will take, or None where nothing is known of what it does."""
        expected = self._expected(node)
        return None if expected is None else expected * self._factor(node)

    def total(self, nodes: Iterable[str]) -> float | None:
        """Return how long nodes will take together, or None where one is not known."""
        each = [self.seconds(node) for node in nodes]
        return None if None in each else float(sum(each))

    def end(self, node: str, seconds: float) -> None:
        """Take account of how long a node took that has done all of its work."""
        expected, work = self._expected(node), self.work.get(node)
        if work is None or node in self.free or node in self.begun:
            return
        if expected is None:
            self.counted.append(Measured(seconds, work))
            expected = seconds
        self._ended.append((work, expected, seconds))

    def origin(self, nodes: Iterable[str]) -> str:
        """Return in words what the time of nodes was taken from: what is least sure."""
        counts = [node for node in nodes if node in self.work and node not in self.free]
        if all(self._own(node) is not None for node in counts):
            return "as earlier here"
        if all(self._own(n) is not None or self._pace(self.work[n]) for n in counts):
            return "by the pace of earlier stages here"
        return "by a short test of this machine"

    def _own(self, node: str) -> float | None:
        work, known = self.work.get(node), self.before.get(node)
        if known is None:
            return None
        if work is None:
            return known.seconds
        if known.work is None or (known.work.kind, known.work.by) != (work.kind, work.by):
            return None
        return known.seconds * work.tokens / known.work.tokens

    def _expected(self, node: str) -> float | None:
        if node in self.free:
            return 0.0
        if (own := self._own(node)) is not None:
            return own
        work = self.work.get(node)
        if work is None:
            short = node.rpartition(".")[2]
            unpacked = any(source.kind == "gguf" for source in self.sources.values())
            long = unpacked and re.match("import_", short)
            return _IMPORT_SECONDS if long else _OTHER_SECONDS
        pace = self._pace(work) or self._first_pace(work)
        return None if pace is None else pace * work.tokens

    def _pace(self, work: Work) -> float | None:
        alike = [
            known for known in self.counted
            if known.work is not None and (known.work.kind, known.work.by) == (work.kind, work.by)
        ]  # fmt: skip
        if not alike:
            return None
        return sum(each.seconds for each in alike) / sum(each.work.tokens for each in alike)

    def _first_pace(self, work: Work) -> float | None:
        size = _size(self.sources.get(work.by))
        if size is None:
            return None
        if self._rate is None:
            self._rate = product_rate()
        return _SECONDS[work.kind] * size * RATE / self._rate if self._rate else None

    def _factor(self, node: str) -> float:
        """Return how much longer nodes took than was expected: the most alike that have ended."""
        work = self.work.get(node)
        if work is None or not self._ended:
            return 1.0
        of_kind = [each for each in self._ended if each[0].kind == work.kind]
        alike = [each for each in of_kind if each[0].by == work.by] or of_kind or self._ended
        return sum(took for *_, took in alike) / sum(expected for _, expected, _ in alike)


def _size(source: ModelSource | None) -> float | None:
    """Return how large a model is against the embedded one, or None where that is not known."""
    if source is None or source.kind != "gguf":
        return None
    path, embedded = PROJECT_FOLDER / source.location, PROJECT_FOLDER / _RAW / FILES[0][2]
    if not embedded.is_file():
        return None
    return path.stat().st_size / embedded.stat().st_size if path.is_file() else None


def product_rate(seconds: float = 1.0) -> float:
    """Return the GFLOP/s of the matrix products of the embedded model's layers, or 0 with a GPU.

    80 rows in the data type that the transformers engine takes, for about so many seconds.
    """
    import torch

    from sami_pipeline.engines.transformers_engine import fastest_dtype

    if torch.cuda.is_available():
        return 0.0
    dtype = fastest_dtype(torch.device("cpu"))
    rows, (wide, inner) = 80, (576, 1536)
    inputs, narrow = (torch.zeros(rows, width, dtype=dtype) for width in (wide, inner))
    # As many weights as the model has, so that they come from memory and not from a cache.
    layers = [
        (torch.zeros(wide, inner, dtype=dtype), torch.zeros(inner, wide, dtype=dtype))
        for _ in range(60)
    ]
    done, start = 0, None
    while start is None or time.monotonic() - start < seconds:
        for up, down in layers:
            torch.mm(inputs, up)
            torch.mm(narrow, down)
        if start is None:  # the first round allocates
            start = time.monotonic()
        else:
            done += 4 * rows * wide * inner * len(layers)
    return done / (time.monotonic() - start) / 1e9
