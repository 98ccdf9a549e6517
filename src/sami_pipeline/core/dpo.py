"""DPO (arXiv 2305.18290) on grids: of each prompt's responses, its own is preferred to the others.

The prompt of a pair is computed once for both of its responses, and a response once for all pairs
that it is in (``core.packing``). The reference is the model before training: its log-probabilities
are computed once, and kept with the training's states.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from sami_pipeline import files
from sami_pipeline.core.adapters import without_adapters
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.core.distributed import current_workers
from sami_pipeline.core.grid import Grid
from sami_pipeline.core.logprobs import GridLogprobs
from sami_pipeline.core.packing import packed_length
from sami_pipeline.core.state import matching_state
from sami_pipeline.core.training import Objective, logprobs_as_trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE_FILE = "reference.safetensors"


@dataclass(frozen=True)
class ReferenceGrid(Grid):
    """A grid with the log-probabilities that the reference gave its cells.

    Attributes:
        reference_sums: (n_c, n_r) in nats, summed over a response's tokens.
    """

    reference_sums: Sequence[Sequence[float]]


def preference_margins(sums: Tensor, reference_sums: Tensor) -> Tensor:
    """Return how much more than the reference a model prefers each prompt's own response.

    Args:
        sums: (n_c, n_r), log p of response j under prompt i in nats, summed over tokens; n_c may be
            less than n_r. Response i is prompt i's own.
        reference_sums: the same of the reference.

    Returns:
        (n_c · (n_r - 1),) in nats, one a pair, in the order of the cells, differentiable: β times
        it is the difference of DPO's implicit rewards.
    """
    gains = sums - reference_sums
    prompts, responses = gains.shape
    return torch.stack(
        [gains[i, i] - gains[i, j] for i in range(prompts) for j in range(responses) if j != i]
    )


@dataclass(frozen=True)
class DpoObjective(Objective):
    """The mean of ``-log σ(β · margin)`` over a grid's pairs: equation 7 of arXiv 2305.18290.

    Attributes:
        beta: β, how closely the model keeps to the reference.
    """

    beta: float

    name: ClassVar[str] = "DPO"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "preference_accuracy", "reward_margin")
    shown: ClassVar[Mapping[str, str]] = {"preferred": "preference_accuracy"}

    def settings(self) -> dict[str, Any]:
        """Return β; see ``Objective``."""
        return {"dpo_beta": self.beta}

    def check(self, grids: Sequence[Grid]) -> None:
        """Refuse grids without pairs, and several workers; see ``Objective``."""
        if current_workers().count > 1:
            raise ValueError("DPO: is not there for several workers; train in one process")
        for index, grid in enumerate(grids):
            prompts, responses = grid.shape
            if responses < 2 or prompts > responses:
                raise ValueError(
                    f"grids[{index}]: {prompts} prompts and {responses} responses; DPO needs a "
                    "response of each prompt's own, and another"
                )

    def begun(
        self,
        model: PreTrainedModel,
        grids: Sequence[Grid],
        config: SamiTrainingConfig,
        state_folder: Path | None,
        run_fingerprint: dict[str, str],
        progress: bool,
    ) -> Sequence[Grid]:
        """Return the grids with what the reference gives them; see ``Objective``."""
        place = None
        if state_folder is not None and config.saves_states:
            matching_state(state_folder, run_fingerprint)  # before hours are spent on it
            place = state_folder / REFERENCE_FILE
        sums = None if place is None else _kept_sums(place, run_fingerprint)
        if sums is None:
            sums = torch.cat([s.flatten() for s in _reference_sums(model, grids, config, progress)])
            if place is not None:
                _keep(place, sums, run_fingerprint)
        sizes = [grid.shape[0] * grid.shape[1] for grid in grids]
        return [
            ReferenceGrid(grid.prompt_ids, grid.response_ids, cells.view(grid.shape).tolist())
            for grid, cells in zip(grids, sums.split(sizes), strict=True)
        ]

    def loss(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return the mean loss of a grid's pairs; see ``Objective``."""
        return -F.logsigmoid(self.beta * _margins(grid, result)).mean()

    def measure(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return loss, share of pairs that are preferred, and mean reward margin."""
        margins = _margins(grid, result).detach()
        values = [
            -F.logsigmoid(self.beta * margins).mean(),
            (margins > 0).double().mean(),
            self.beta * margins.mean(),
        ]
        return torch.stack([value.double() for value in values])


def _margins(grid: Grid, result: GridLogprobs) -> Tensor:
    if not isinstance(grid, ReferenceGrid):
        raise TypeError("grid: what the reference gives it is not known; see DpoObjective.begun")
    return preference_margins(result.sums, result.sums.new_tensor(grid.reference_sums))


@torch.no_grad()
def _reference_sums(
    model: PreTrainedModel, grids: Sequence[Grid], config: SamiTrainingConfig, progress: bool
) -> list[Tensor]:
    """Return (n_c, n_r) sums of each grid by a model that is not trained yet, on the CPU.

    In the precision of the training, so that margins begin at 0.
    """
    # Grids of similar length share a pass, as in training.
    order = sorted(range(len(grids)), key=lambda index: packed_length(grids[index]))
    size = config.grids_per_micro_batch
    found: dict[int, Tensor] = {}
    with (
        without_adapters(model),
        tqdm(total=len(grids), desc="DPO reference", disable=not progress, file=sys.stderr) as bar,
    ):
        for first in range(0, len(order), size):
            part = order[first : first + size]
            results = logprobs_as_trained(model, [grids[index] for index in part], config, None)
            found |= {i: result.sums.cpu() for i, result in zip(part, results, strict=True)}
            bar.update(len(part))
    return [found[index] for index in range(len(grids))]


def _keep(place: Path, sums: Tensor, run_fingerprint: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with files.whole_file(place) as partial:
        save_file({"sums": sums}, partial, {"fingerprint": json.dumps(run_fingerprint)})


def _kept_sums(place: Path, run_fingerprint: dict[str, str]) -> Tensor | None:
    """Return what an earlier start of the same run has computed, or None."""
    from safetensors import safe_open

    if not place.is_file():
        return None
    with safe_open(place, "pt") as kept:
        if json.loads(kept.metadata()["fingerprint"]) != run_fingerprint:
            return None
        return kept.get_tensor("sums")
