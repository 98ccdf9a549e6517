"""What a baseline is: everything that training has to be told about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sami_pipeline.engines.parameters import Settings


class NoSettings(Settings):
    """Of a baseline that takes everything from SAMI's training."""


@dataclass(frozen=True)
class Baseline:
    """A model that is trained on SAMI's responses to be compared with SAMI.

    Functions are named as "module:function" and imported where they are used, so that what needs
    only the name and the settings of a baseline depends on nothing else of it.

    Attributes:
        name: of the model, in ``models.under_test`` and everywhere else.
        method: trains a model in place and returns its history, as ``dpo.train_dpo`` does; "" is
            SAMI itself, for SAMI after a baseline.
        settings: its own parameters.
        group: of ``training``, where its parameters stand; "" takes the name.
        starts_from: the trained model that it goes on with; "" is the student.
        choose: of the responses, gives those that it is trained on; called with the table of
            responses, the settings, and what the experiment knows of its queries (by dataset, such
            as ``problems``). "" takes all.
        grids: of SAMI's grids and the settings, gives those that a step computes; a dry run takes
            them, and ``passes``, for memory and time.
        passes: of the model through every grid in a step, a backward pass counting two.
        step_memory: memory of a step on a micro-batch of ``grids``, as ``sft.step_memory``.
        follows_lora: whether it trains adapters where ``training.sami.lora`` says so; else it is
            refused there, since it would be compared with a model that trained all its weights.
        words: what its method does, for readers of a report who see its name only.
    """

    name: str
    method: str = ""
    settings: type[Settings] = NoSettings
    group: str = ""
    starts_from: str = ""
    choose: str = ""
    grids: str = "sami_pipeline.training.baselines.sft:demonstrations"
    passes: int = 3
    step_memory: str = "sami_pipeline.training.baselines.sft:step_memory"
    follows_lora: bool = False
    words: str = "trained on the same responses, to compare with"

    @property
    def settings_group(self) -> str:
        """The group of ``training`` with its own parameters."""
        return self.group or self.name

    def settings_in(self, training: Any) -> Any:
        """Return its own parameters, among those of training."""
        return (
            NoSettings() if self.settings is NoSettings else getattr(training, self.settings_group)
        )

    @property
    def is_sami(self) -> bool:
        """Whether SAMI itself trains it."""
        return not self.method


def function(name: str) -> Callable[..., Any]:
    """Return the function of a module, named as "module:function"."""
    module, _, within = name.partition(":")
    return getattr(import_module(module), within)
