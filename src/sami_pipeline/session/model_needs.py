"""What models will be asked, held against their templates and contexts before anything is computed.

What that is, an experiment says itself: `experiments.record.Experiment.asked`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

from sami_pipeline.engines.registry import engine_kinds
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.asked import Asked, Known, asked_in_training
from sami_pipeline.experiments.record import Experiment
from sami_pipeline.models import hub
from sami_pipeline.models.checkpoints import (
    ModelSource,
    check_gguf,
    load_gguf_tokenizer,
    load_tokenizer,
)
from sami_pipeline.models.prompts import ChatParameters
from sami_pipeline.models.tokens import TextEncoder
from sami_pipeline.parameters import ExperimentParameters

# More than any chat template writes around a conversation of a few turns, in bytes.
_AROUND = 2000


def check(
    experiment: Experiment, parameters: ExperimentParameters, known: Known, project_folder: Path
) -> None:
    """Check that each model from outside can be asked what it will be asked.

    Args:
        experiment: what it asks whom in its evaluation.
        parameters: its own.
        known: its templates and tables.
        project_folder: what relative paths are relative to.

    Raises:
        InputError: a model has no chat template for a chat prompt, its template fails, or most of
            its prompts leave no room in its context.
    """
    for asked in chain(asked_in_training(parameters, known), experiment.asked(parameters, known)):
        models = parameters.models
        source = models.sources.get(asked.model)
        if source is None or not asked.prompts or asked.model in models.trust_remote_code:
            continue  # trained here, or its tokenizer would run code
        try:
            _check(source, asked, models.chat, project_folder)
        except InputError as error:
            where = f"{experiment.name}.{asked.role}: {asked.model}"
            raise InputError(f"{where}: {error}") from error


def _check(source: ModelSource, asked: Asked, chat: ChatParameters, project_folder: Path) -> None:
    path: Path | None = project_folder / source.location
    if source.kind == "gguf":
        header = check_gguf(path)
        by_template = any(prompt.messages for prompt in asked.prompts)
        if by_template and not header.values.get("tokenizer.chat_template"):
            raise InputError(
                f"{path}: the tokenizer has no chat template; choose a plain prompt template for "
                "this model"
            )
        _check_lengths(asked, header.context, lambda: TextEncoder(load_gguf_tokenizer(path), chat))
        return
    if source.kind == "hub":
        path = hub.cached(source.location)
    if source.kind == "random" or path is None or not path.is_dir():
        return
    encoder = TextEncoder(load_tokenizer(path), chat)
    encoder.render(asked.prompts[0])
    _check_lengths(asked, _context(path), lambda: encoder)


def _check_lengths(
    asked: Asked, context: int | None, open_encoder: Callable[[], TextEncoder]
) -> None:
    """Refuse where most prompts leave no room.

    A token has at least one byte: where the bytes fit, none is counted.
    """
    engine = asked.engine
    allowed = engine and engine_kinds()[engine.kind].context(engine.settings)
    if allowed:
        context = min(context or allowed, allowed)
    if context is None:
        return
    longest = max(len(prompt.to_json().encode()) for prompt in asked.prompts)
    if longest + _AROUND + asked.room <= context:
        return
    encoder = open_encoder()
    lengths = sorted(len(encoder.encode(prompt).ids) for prompt in asked.prompts)
    if (needed := lengths[len(lengths) // 2] + asked.room) > context:
        raise InputError(
            f"its context of {context} tokens is too short: half of what it is asked needs "
            f"{needed} and more, {asked.room} of them for what is written at most; lower "
            f"{asked.remedy}, or take a model with a longer context"
        )


def _context(folder: Path) -> int | None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return getattr(config.get_text_config(), "max_position_embeddings", None)
