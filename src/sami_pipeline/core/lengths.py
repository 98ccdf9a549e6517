"""How long a grid's cells may be for a model, and which may be computed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sami_pipeline.core.grid import Grid

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Cell = tuple[int, int, int]
"""Grid, constitution and response, each counted from 0."""


def check_ids(vocabulary: int, grids: Sequence[Grid]) -> None:
    """Refuse grids with tokens that a model's embedding lacks.

    Raises:
        ValueError: names the grid, such as one that another model's tokenizer made.
    """
    for index, grid in enumerate(grids):
        largest = max(max(sequence) for sequence in (*grid.prompt_ids, *grid.response_ids))
        if largest >= vocabulary:
            raise ValueError(
                f"grids[{index}]: holds the token {largest}, but the model has {vocabulary} "
                "tokens; use the tokenizer that belongs to the model"
            )


def check_lengths(config: PretrainedConfig, grids: Sequence[Grid]) -> None:
    """Refuse grids that are too long for a model.

    Raises:
        ValueError: names the grid, its length and the model's.
    """
    for index, grid in enumerate(grids):
        if fault := too_long(config, grid):
            raise ValueError(
                f"grids[{index}]: {fault}; shorten the responses or leave the grid out"
            )


def too_long(config: PretrainedConfig, grid: Grid) -> str | None:
    """Return in words why a grid is too long for a model, or None.

    A model with rotary positions would compute it without an error, and badly. Models whose
    positions are not counted (ALiBi, state spaces) take any length.
    """
    longest = max(map(len, grid.prompt_ids)) + max(map(len, grid.response_ids))
    positions = _positions(config)
    if positions is not None and longest > positions:
        return f"prompt and response have {longest} tokens, but the model has {positions} positions"
    dynamic = _original_context(config, "dynamic")
    if dynamic is not None and longest > dynamic:
        return (
            f"prompt and response have {longest} tokens; beyond {dynamic} this model's dynamic "
            "rotary scaling gives other values after every longer text before it, so it can't be "
            "trained there"
        )
    return None


def sides_of_original_context(
    config: PretrainedConfig, grids: Sequence[Grid]
) -> list[list[Cell] | None]:
    """Return the cells that may share a forward pass.

    With ``longrope`` scaling all rows of a pass take the frequencies of the longest: the short ones
    up to the original context, the long ones beyond it.

    Returns:
        ``[None]`` where all cells of any grids go together; one empty list where all cells of these
        lie on one side, and padding must not carry them over; else the cells of each side.
    """
    original = _original_context(config, "longrope")
    if original is None:
        return [None]
    sides: tuple[list[Cell], list[Cell]] = ([], [])
    for number, grid in enumerate(grids):
        for i, prompt in enumerate(grid.prompt_ids):
            for j, response in enumerate(grid.response_ids):
                sides[len(prompt) + len(response) > original].append((number, i, j))
    return list(sides) if all(sides) else [[]]


def _positions(config: PretrainedConfig) -> int | None:
    text = config.get_text_config()
    if getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt"):
        return None
    value = getattr(text, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def _original_context(config: PretrainedConfig, kind: str) -> int | None:
    """Return up to which length a kind of rotary scaling leaves a model as it is, or None."""
    text = config.get_text_config()
    found = [
        scaling.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for scaling in _scalings(text)
        if kind in str(scaling.get("rope_type", scaling.get("type")))
    ]
    return min(found, default=None)


def _scalings(config: Any) -> Iterator[Mapping[str, Any]]:
    for name in ("rope_parameters", "rope_scaling"):
        scaling = getattr(config, name, None)
        if isinstance(scaling, Mapping):
            yield scaling
            yield from (part for part in scaling.values() if isinstance(part, Mapping))
