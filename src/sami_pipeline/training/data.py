"""From the table of responses to grids, and from held-out grids to a table."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sami_pipeline import engines, schemas
from sami_pipeline.errors import InputError, writing
from sami_pipeline.evaluation.intervals import DIFFERENCE, SHARE, mean_interval
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.process_settings import give_back_freed_memory
from sami_pipeline.training.held_out import held_out_measures
from sami_pipeline.training.responses import USABLE

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sami_pipeline.core.config import SamiTrainingConfig
    from sami_pipeline.core.grid import Grid
    from sami_pipeline.core.training import AfterStep
    from sami_pipeline.models.checkpoints import Checkpoint
    from sami_pipeline.models.tokens import EncodedPrompt, TextEncoder
    from sami_pipeline.parameters import TrainingParameters

logger = logging.getLogger(__name__)

HELD_OUT_METRICS = (
    "loss",
    "mi_lower_bound",
    "row_accuracy",
    "column_accuracy",
    "response_tokens",
)


def with_seed(config: SamiTrainingConfig, further: int) -> SamiTrainingConfig:
    """Return the settings of a replicate, whose seed is so much above the first one's."""
    return config.replaced(seed=config.seed + further)


def select_grids(
    responses: pd.DataFrame, split: str, encoder: TextEncoder, *, train_on_eos: bool = True
) -> list[Grid]:
    """Return the usable grids of a split, in the order of the query ids.

    Args:
        responses: see ``schemas.Responses``.
        split: "train" or "held_out".
        encoder: the student's.
        train_on_eos: a response that ended by itself ends with a token; see ``_end_token``.
    """
    rows = responses[(responses["status"] == USABLE) & (responses["split"] == split)]
    grids, named, parted = [], 0, 0
    for _, group in rows.sort_values(["query_id", "constitution_index"]).groupby(
        ["query_id", "grid"]
    ):
        grid, with_names, without_blank = _grid(group, encoder, train_on_eos=train_on_eos)
        grids.append(grid)
        named += with_names
        parted += without_blank
    if named:
        logger.warning("%d training prompts name control tokens, encoded as text", named)
    if parted:
        logger.info("%d responses: a blank that parted them from their prompt is left out", parted)
    return grids


def _grid(
    group: pd.DataFrame, encoder: TextEncoder, *, train_on_eos: bool
) -> tuple[Grid, int, int]:
    """Return a grid, its prompts that name control tokens, and responses that lost a blank."""
    from sami_pipeline.core.grid import Grid

    prompts = [encoder.encode(Prompt.from_json(text)) for text in group["training_prompt"]]
    response_ids, parted = [], 0
    for prompt, row in zip(prompts, group.itertuples(index=False), strict=True):
        text = _as_it_follows(prompt, row.response)
        parted += text != row.response
        ended = train_on_eos and row.finish_reason == "stop"
        end = encoder.end_ids(prompt, ended, _end_token(row))
        response_ids.append(encoder.encode_response(prompts, text) + end)
    named = sum(prompt.control_strings > 0 for prompt in prompts)
    return Grid([prompt.ids for prompt in prompts], response_ids), named, parted


def mark_too_long(responses: pd.DataFrame, student: Checkpoint) -> pd.DataFrame:
    """Return the responses with the status "too_long_for_student" where a grid is.

    Its prompt and response have more tokens than the student has positions, so no model that
    begins with the student can be trained on it or measured with it.

    Args:
        responses: see ``schemas.Responses``.
        student: the model to train.
    """
    from sami_pipeline.core.lengths import too_long

    config, encoder = student.load_config(), student.load_encoder()
    usable = responses[responses["status"] == USABLE]
    found = {
        key
        for key, group in usable.sort_values("constitution_index").groupby(["query_id", "grid"])
        if too_long(config, _grid(group, encoder, train_on_eos=True)[0])
    }
    keys = zip(responses["query_id"], responses["grid"], strict=True)
    is_long = pd.Series([key in found for key in keys], index=responses.index)
    return responses.assign(status=responses["status"].mask(is_long, "too_long_for_student"))


def _as_it_follows(prompt: EncodedPrompt, response: str) -> str:
    """Return a response without the blank that parted it from the prompt it was written behind.

    Mistral's responses follow ``[/INST]`` after a blank. Behind a prompt that ends in white space
    already there would be two.
    """
    if prompt.text[-1:].isspace() and response[:1] == " " and not response[1:2].isspace():
        return response[1:]
    return response


def _end_token(row: Any) -> str:
    """Return the token that ended a response, if it was written behind a prompt of the same kind.

    What ends a text does not end a turn, nor the other way round.
    """
    written, trained = (Prompt.from_json(text) for text in (row.prompt, row.training_prompt))
    return row.end_token if bool(written.messages) == bool(trained.messages) else ""


def require_grids(name: str, grids: Sequence[object]) -> None:
    """Refuse to train a model on nothing.

    Raises:
        InputError: there is no grid.
    """
    if not grids:
        raise InputError(
            f"{name}: none of the training queries is left for it; look at the status of the "
            "responses, or take it out of models.under_test"
        )


@dataclass
class Training:
    """A student about to be trained.

    Attributes:
        model: fp32 weights.
        tokenizer: its own.
        grids: of the training queries.
        after_step: measures the held-out queries at the step that the parameters name.
        held_out: see ``held_out_table``; filled when the training is over.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    grids: list[Grid]
    after_step: AfterStep
    held_out: pd.DataFrame = field(default_factory=pd.DataFrame)


@contextmanager
def measured_training(
    name: str, student: Checkpoint, responses: pd.DataFrame, parameters: TrainingParameters
) -> Iterator[Training]:
    """Open a student and its grids, and measure SAMI's objective on held-out queries around it.

    Whatever trains the model in between, SAMI or a baseline, is measured alike.
    """
    import torch

    engines.release()
    encoder, train_on_eos = student.load_encoder(), parameters.sami.train_on_eos
    model = student.load_model(torch.float32, parameters.device)
    held_out, train = (
        select_grids(responses, split, encoder, train_on_eos=train_on_eos)
        for split in ("held_out", "train")
    )
    require_grids(name, train)
    logger.info("%d grids to train on, %d held out", len(train), len(held_out))
    measured: dict[str, pd.DataFrame] = {}

    def measure(stage: str) -> None:
        if held_out:
            measured[stage] = held_out_measures(model, held_out, parameters.sami, stage)

    def measure_early(model: PreTrainedModel, steps: int) -> None:
        if held_out and steps == parameters.held_out_after_steps:
            early = held_out_measures(model, held_out, parameters.sami, f"after {steps} steps")
            table = held_out_table(name, {"before": measured["before"], "after": early})
            logger.info("%s", first_results(table, steps))
            give_back_freed_memory()  # as after the measure before

    training = Training(model, encoder.tokenizer, train, measure_early)
    measure("before")
    give_back_freed_memory()  # blocks of other sizes than training asks for, so it can't reuse them
    yield training
    gc.collect()  # trainers refer to themselves, and to what they have computed
    measure("after")
    training.held_out = held_out_table(name, measured)


@contextmanager
def state_kept_in(folder: Path) -> Iterator[None]:
    """Name the folder of a training's saved states where one can't be written, or is damaged."""
    from safetensors import SafetensorError

    try:
        with writing(folder):
            yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        raise InputError(
            f"{folder}: a saved state can't be read ({str(error).splitlines()[0]}); delete the "
            "folder to start this training over"
        ) from error


def history_table(model: str, history: pd.DataFrame) -> pd.DataFrame:
    """Return a model's history with all columns of the table of histories, empty where unknown."""
    known = history.assign(model=model)
    return schemas.History.tabulate(known.reindex(columns=list(schemas.History.empty())))


def first_results(table: pd.DataFrame, steps: int) -> str:
    """Return what a model has learnt after its first steps, in a line.

    Args:
        table: see ``held_out_table``, of all three stages.
        steps: how many were taken.
    """
    rows = table.set_index(["metric", "stage"])
    model, n = table["model"].iloc[0], table["n"].iloc[0]
    found = []
    for metric, words in (("row_accuracy", "row accuracy"), ("mi_lower_bound", "MI lower bound")):
        before, after, difference = (
            rows.loc[(metric, stage)] for stage in ("before", "after", "difference")
        )
        limits = f" [{difference['ci_low']:+.2f}, {difference['ci_high']:+.2f}]" if n > 1 else ""
        found.append(
            f"{words} {before['value']:.2f} to {after['value']:.2f} "
            f"({difference['value']:+.2f}{limits})"
        )
    queries, taken = "query" if n == 1 else "queries", "step" if steps == 1 else "steps"
    return f"{model} after {steps} {taken}, n = {n} held-out {queries}: {', '.join(found)}"


def held_out_table(model: str, measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of `schemas.HeldOut`, with intervals over held-out queries.

    Args:
        model: the trained model's name.
        measured: by stage ("before", "after"), one row per grid; where both are there, the
            paired difference follows as the stage "difference".
    """
    stages = dict(measured)
    if {"before", "after"} <= set(stages):
        stages["difference"] = stages["after"] - stages["before"]
    rows = []
    for stage, table in stages.items():
        for metric in HELD_OUT_METRICS:
            limits = None
            if metric.endswith("accuracy"):
                limits = DIFFERENCE if stage == "difference" else SHARE
            interval = mean_interval(table[metric], np.arange(len(table)), limits=limits)
            rows.append(
                {
                    "model": model,
                    "stage": stage,
                    "metric": metric,
                    "n": interval.n,
                    "value": interval.estimate,
                    "ci_low": interval.low,
                    "ci_high": interval.high,
                }
            )
    return schemas.HeldOut.tabulate(rows)
