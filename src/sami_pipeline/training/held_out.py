"""SAMI's objective on held-out queries, computed once of the same model on the same grids.

What a training ends with the next one begins with: SFT's "after" is the "before" of SAMI and DPO
that go on from it, and all that start from one model share its "before". What was measured is known
in this process alone, by everything that it follows from, so it can't be out of date; another
process measures again and comes to the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sami_pipeline.core.config import SamiTrainingConfig
    from sami_pipeline.core.grid import Grid

logger = logging.getLogger(__name__)

# Of the latest models: a table of some kilobytes each.
_KEPT = 64
_measured: dict[str, pd.DataFrame] = {}


def held_out_measures(
    model: PreTrainedModel, grids: Sequence[Grid], config: SamiTrainingConfig, stage: str
) -> pd.DataFrame:
    """Return ``core.evaluate_grids`` of held-out grids, which may have been computed before.

    Args:
        model: on its device, in the precision that it is measured in.
        grids: of token ids.
        config: as SAMI trains.
        stage: "before" or "after" its training, for the progress bar.
    """
    from sami_pipeline.core import evaluate_grids

    key = _key(model, grids, config.length_normalise)
    if key in _measured:
        logger.info("Held-out grids %s: the same model was measured on them already", stage)
    else:
        while len(_measured) >= _KEPT:
            del _measured[next(iter(_measured))]
        _measured[key] = evaluate_grids(
            model, None, grids, config, description=f"Held-out grids {stage}"
        )
    return _measured[key].copy()


def _key(model: PreTrainedModel, grids: Sequence[Grid], length_normalise: bool) -> str:
    """Return a hash of all that the measures follow from, every bit of the weights included."""
    import torch

    from sami_pipeline.core.state import architecture

    known = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        known.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.device}".encode())
        known.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    settings = {
        "architecture": architecture(model),
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads(),  # sums in another order
        "length_normalise": length_normalise,
        "grids": [asdict(grid) for grid in grids],
    }
    known.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return known.hexdigest()
