"""Grids of prompts and responses as token ids, and how they are laid out as model rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Layout = Literal["shared_prefix", "repeated"]

PADDING_SEGMENT = -1
PROMPT_SEGMENT = 0


@dataclass(frozen=True)
class Grid:
    """One query under n_c constitutions with n_r responses, as token ids.

    Attributes:
        prompt_ids: n_c sequences; prompt i is the query under constitution i.
        response_ids: n_r sequences; response j was written under constitution j.

    Prompt and response are tokenised apart and joined as ids, so no merge across their border
    can shift which tokens count as the response.

    Raises:
        ValueError: no prompt or no response, or one of them is empty.
    """

    prompt_ids: Sequence[Sequence[int]]
    response_ids: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        for name, sequences in (
            ("prompt_ids", self.prompt_ids),
            ("response_ids", self.response_ids),
        ):
            if len(sequences) == 0:
                raise ValueError(f"{name}: a grid needs at least one sequence")
            for index, sequence in enumerate(sequences):
                if len(sequence) == 0:
                    raise ValueError(
                        f"{name}[{index}]: is empty; a sequence needs at least one token"
                    )

    @property
    def shape(self) -> tuple[int, int]:
        """(n_constitutions, n_responses)."""
        return len(self.prompt_ids), len(self.response_ids)

    @property
    def response_tokens(self) -> int:
        """Number of tokens of all responses together, each counted once."""
        return sum(len(response) for response in self.response_ids)

    def row_tokens(self, layout: Layout = "shared_prefix") -> int:
        """Return how many token positions a model computes for this grid, without padding."""
        n_prompts, n_responses = self.shape
        prompt_tokens = sum(len(prompt) for prompt in self.prompt_ids)
        repeats = 1 if layout == "shared_prefix" else n_responses
        return prompt_tokens * repeats + n_prompts * self.response_tokens


@dataclass(frozen=True)
class TextGrid:
    """One query under n constitutions with n responses, as text.

    Attributes:
        prompts: n rendered prompts, special tokens written out.
        responses: n responses.
        ended: for each response, whether it ended by itself (and so has an end-of-sequence token
            to learn) rather than at the token limit.
    """

    prompts: Sequence[str]
    responses: Sequence[str]
    ended: Sequence[bool]

    def tokenise(self, tokenizer: PreTrainedTokenizerBase, *, train_on_eos: bool = True) -> Grid:
        """Return the grid of token ids.

        Args:
            tokenizer: the student's tokenizer; no special tokens are added to what is written.
            train_on_eos: append the end-of-sequence token to responses that ended by themselves.
        """
        end = (
            [tokenizer.eos_token_id] if train_on_eos and tokenizer.eos_token_id is not None else []
        )

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        return Grid(
            prompt_ids=[encode(prompt) for prompt in self.prompts],
            response_ids=[
                encode(response) + (end if ended else [])
                for response, ended in zip(self.responses, self.ended, strict=True)
            ],
        )


@dataclass(frozen=True)
class PackedRows:
    """Model inputs for several grids, and where each grid cell's token predictions lie.

    Attributes:
        input_ids: (rows, T) int64, right-padded.
        position_ids: (rows, T) int64; positions restart after the prompt for every response.
        segment_ids: (rows, T) int64: -1 padding, 0 prompt, j ≥ 1 the row's j-th response.
        source_index: (N,) int64 index into the flattened (rows · T) hidden states: the position
            that predicts each response token.
        target_ids: (N,) int64 tokens to predict.
        cell_lengths: number of tokens of each cell, cells ordered by grid, constitution, response.
        grid_shapes: (n_c, n_r) per grid.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    source_index: Tensor
    target_ids: Tensor
    cell_lengths: list[int]
    grid_shapes: list[tuple[int, int]]

    def attention_mask(self, sliding_window: int | None = None) -> Tensor:
        """Return the (rows, 1, T, T) boolean mask, True where a query may attend to a key.

        A token sees the prompt and its own response, causally; with a sliding window only keys
        whose *position* lies fewer than ``sliding_window`` back, exactly as in separate rows.
        Padding attends to itself: a row of the mask without any key would give NaN.
        """
        segments, positions = self.segment_ids, self.position_ids
        length = segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
        keys = segments[:, None, :]
        queries = segments[:, :, None]
        allowed = causal & ((keys == PROMPT_SEGMENT) | (keys == queries))
        allowed &= (keys != PADDING_SEGMENT) & (queries != PADDING_SEGMENT)
        if sliding_window is not None:
            allowed &= positions[:, :, None] - positions[:, None, :] < sliding_window
        allowed |= torch.eye(length, dtype=torch.bool, device=segments.device)
        return allowed[:, None]

    @property
    def padding_mask(self) -> Tensor:
        """(rows, T) int64, 1 for real tokens: the plain mask for rows of one response each."""
        return (self.segment_ids != PADDING_SEGMENT).long()


def pack_rows(
    grids: Sequence[Grid],
    *,
    layout: Layout = "shared_prefix",
    pad_token_id: int = 0,
    pad_to_multiple: int = 1,
    device: torch.device | str = "cpu",
) -> PackedRows:
    """Lay grids out as model rows.

    ``shared_prefix`` gives one row a constitution, ``[prompt_i | y_1 … y_n]``, so a prompt is
    computed once for all its responses (arXiv 2410.20305); ``repeated`` gives one row a cell,
    ``[prompt_i | y_j]``, as in the published trainer. The cells come in the same order.

    Args:
        grids: any mixture of shapes and lengths.
        layout: see above.
        pad_token_id: any valid id; padding is never read.
        pad_to_multiple: round the row length up, so that compiled code sees few shapes.
        device: where the tensors are put.
    """
    rows: list[tuple[list[int], list[int], list[int]]] = []
    sources: list[tuple[int, int]] = []
    targets: list[int] = []
    cell_lengths: list[int] = []
    for grid in grids:
        for prompt in grid.prompt_ids:
            groups = (
                [grid.response_ids]
                if layout == "shared_prefix"
                else [[response] for response in grid.response_ids]
            )
            for responses in groups:
                ids, positions = list(prompt), list(range(len(prompt)))
                segments = [PROMPT_SEGMENT] * len(prompt)
                for number, response in enumerate(responses, start=1):
                    start = len(ids)
                    ids.extend(response)
                    positions.extend(range(len(prompt), len(prompt) + len(response)))
                    segments.extend([number] * len(response))
                    # The last prompt position predicts the first token of every response.
                    sources.append((len(rows), len(prompt) - 1))
                    sources.extend((len(rows), start + i) for i in range(len(response) - 1))
                    targets.extend(response)
                    cell_lengths.append(len(response))
                rows.append((ids, positions, segments))

    longest = max(len(ids) for ids, _, _ in rows)
    length = -(-longest // pad_to_multiple) * pad_to_multiple

    def stack(column: int, padding: int) -> Tensor:
        padded = [row[column] + [padding] * (length - len(row[column])) for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=device)

    return PackedRows(
        input_ids=stack(0, pad_token_id),
        position_ids=stack(1, 0),
        segment_ids=stack(2, PADDING_SEGMENT),
        source_index=torch.tensor([r * length + t for r, t in sources], device=device),
        target_ids=torch.tensor(targets, dtype=torch.long, device=device),
        cell_lengths=cell_lengths,
        grid_shapes=[grid.shape for grid in grids],
    )
