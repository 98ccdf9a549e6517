"""Which of SAMI's responses each baseline is trained on."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sami_pipeline.inputs.problems import rightly_solved
from sami_pipeline.training.baselines.dpo import DpoParameters
from sami_pipeline.training.baselines.sft import SftParameters
from sami_pipeline.training.responses import with_desired_first


def to_imitate(
    responses: pd.DataFrame, settings: SftParameters, known: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Return the responses that SFT imitates: each query's desired one, right if it is asked so.

    Args:
        responses: as from ``responses.with_training_prompts``.
        settings: of SFT.
        known: the table of problems, in an experiment that has some.
    """
    if settings.only_correct and "problems" in known:
        responses = rightly_solved(responses, known["problems"])
    return with_desired_first(responses, once=True)


def to_prefer(
    responses: pd.DataFrame, settings: DpoParameters, known: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Return the responses that DPO prefers or refuses; see ``to_imitate``."""
    if settings.pairs == "desired":
        return with_desired_first(responses, once=False)
    return responses
