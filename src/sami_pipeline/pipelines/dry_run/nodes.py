"""The node of dry_run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pandas as pd

from sami_pipeline import dry_run
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.workload import Workload
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import DryRunParameters, ExperimentParameters


def examine_experiment(
    principles: pd.DataFrame,
    generation_prompt: dict[str, Any],
    training_prompt: dict[str, Any],
    evaluation_prompt: dict[str, Any],
    assumptions: DryRunParameters,
    *,
    name: str,
    experiment: ExperimentParameters,
    workload: Callable[[pd.DataFrame], Workload],
) -> None:
    """Print memory and time of each stage; raise InputError if it won't do.

    Args:
        principles: one row a principle.
        generation_prompt: template as it is written, like the two after it.
        training_prompt: of the student.
        evaluation_prompt: of models under test.
        assumptions: the machine, and the length of queries.
        name: of the experiment.
        experiment: its parameters.
        workload: gives how much it trains on and writes, from the principles; it may read the
            queries.
    """
    written = {
        "generation_prompt": generation_prompt,
        "training_prompt": training_prompt,
        "evaluation_prompt": evaluation_prompt,
    }
    outcome = dry_run.examine(
        name,
        experiment,
        principles,
        {key: PromptTemplate.parse(value, key) for key, value in written.items()},
        assumptions,
        workload(principles),
    )
    sys.stdout.write(outcome.text())
    sys.stdout.flush()
    if outcome.faults:
        raise InputError("\n".join(outcome.faults))
