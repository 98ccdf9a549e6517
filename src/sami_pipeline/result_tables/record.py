"""What a table of results is: everything that the pipelines and the report have to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sami_pipeline.result_tables.shown import Table

if TYPE_CHECKING:
    import pandas as pd

    from sami_pipeline.parameters import ExperimentParameters


def _always(parameters: ExperimentParameters) -> bool:
    return True


def _no_more(parameters: ExperimentParameters) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class ResultTable:
    """A table of results; its contract is the class ``Contract`` of the same file.

    Attributes:
        name: of its file and of its dataset, as ``mt_bench.steerability``.
        make: the function that makes it.
        inputs: the datasets that the function takes, by the names of its arguments; a group of
            parameters is ``params:models``.
        shown: how a report shows it, under the same name.
        wanted: tells from the parameters whether an experiment makes it.
        more_inputs: further ones, which an experiment has or has not, by its parameters.
    """

    name: str
    make: Callable[..., pd.DataFrame]
    inputs: Mapping[str, str]
    shown: Table
    wanted: Callable[[Any], bool] = _always
    more_inputs: Callable[[Any], Mapping[str, str]] = _no_more
