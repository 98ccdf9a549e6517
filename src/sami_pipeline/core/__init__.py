"""The SAMI objective and training loop. Imports torch and transformers, never kedro.

By hand, in five lines::

    grid = TextGrid(prompts, responses, ended=[True, True]).tokenise(tokenizer)
    result = grid_logprobs(model, grid)
    loss = sami_loss(result.means)
    loss.backward()
    print(loss.item(), mi_lower_bound(result.sums).item(), grid_accuracy(result.means))

The names load when they are first used, so that importing a configuration loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sami_pipeline.core.config import LoraParameters, SamiTrainingConfig
    from sami_pipeline.core.grid import Grid, TextGrid
    from sami_pipeline.core.logprobs import (
        GridLogprobs,
        Reference,
        batched_grid_logprobs,
        grid_logprobs,
    )
    from sami_pipeline.core.objective import (
        GridAccuracy,
        grid_accuracy,
        mi_lower_bound,
        sami_loss,
        sami_loss_gradient,
    )
    from sami_pipeline.core.state import StateMismatchError
    from sami_pipeline.core.training import TrainingResult, evaluate_grids, train_sami

_MODULES = {
    "config": ("LoraParameters", "SamiTrainingConfig"),
    "grid": ("Grid", "TextGrid"),
    "logprobs": ("GridLogprobs", "Reference", "batched_grid_logprobs", "grid_logprobs"),
    "objective": (
        "GridAccuracy",
        "grid_accuracy",
        "mi_lower_bound",
        "sami_loss",
        "sami_loss_gradient",
    ),
    "state": ("StateMismatchError",),
    "training": ("TrainingResult", "evaluate_grids", "train_sami"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Grid",
    "GridAccuracy",
    "GridLogprobs",
    "LoraParameters",
    "Reference",
    "SamiTrainingConfig",
    "StateMismatchError",
    "TextGrid",
    "TrainingResult",
    "batched_grid_logprobs",
    "evaluate_grids",
    "grid_accuracy",
    "grid_logprobs",
    "mi_lower_bound",
    "sami_loss",
    "sami_loss_gradient",
    "train_sami",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
