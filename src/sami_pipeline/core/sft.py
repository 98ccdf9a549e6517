"""Supervised finetuning on grids of one prompt and one response: the response is imitated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sami_pipeline.core.grid import Grid
from sami_pipeline.core.logprobs import GridLogprobs
from sami_pipeline.core.training import Objective


class SftObjective(Objective):
    """The mean of ``-log p(token)`` over all response tokens of a step, as TRL's SFTTrainer has it.

    So a long response counts for more than a short one, and it does not matter into which
    micro-batches a step is cut.
    """

    name: ClassVar[str] = "SFT"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    shown: ClassVar[Mapping[str, str]] = {}

    def check(self, grids: Sequence[Grid]) -> None:
        """Refuse grids of more than one prompt or response; see ``Objective``."""
        for index, grid in enumerate(grids):
            if grid.shape != (1, 1):
                raise ValueError(
                    f"grids[{index}]: {grid.shape[0]} prompts and {grid.shape[1]} responses; SFT "
                    "imitates one response to one prompt"
                )

    def weight(self, grid: Grid, batch: Sequence[Grid]) -> float:
        """Return the grid's share of the batch's response tokens, times the number of grids."""
        return len(batch) * grid.response_tokens / sum(other.response_tokens for other in batch)

    def loss(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return the mean over the response's tokens; see ``Objective``."""
        return -result.means.mean()

    def measure(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return the loss; see ``Objective``."""
        return torch.stack([self.loss(grid, result).detach().double()])
