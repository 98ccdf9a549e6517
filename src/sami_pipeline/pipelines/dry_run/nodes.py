"""The node of dry_run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sami_pipeline import dry_run
from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import DryRunParameters, ExperimentParameters
from sami_pipeline.principles.constitutions import tabulate_principles


def examine_experiment(name: str, experiment: ExperimentParameters) -> Callable[..., None]:
    """Return the node function that prints what an experiment needs."""

    def examine(
        principle_files: dict[str, Callable[[], Any]],
        generation_prompt: dict[str, Any],
        training_prompt: dict[str, Any],
        evaluation_prompt: dict[str, Any],
        assumptions: DryRunParameters,
    ) -> None:
        """Print memory and time of each stage; raise InputError if it won't do."""
        written = {
            "generation_prompt": generation_prompt,
            "training_prompt": training_prompt,
            "evaluation_prompt": evaluation_prompt,
        }
        outcome = dry_run.examine(
            name,
            experiment,
            tabulate_principles({f"{file}.yml": load() for file, load in principle_files.items()}),
            {key: PromptTemplate.parse(value, key) for key, value in written.items()},
            assumptions,
        )
        sys.stdout.write(outcome.text())
        sys.stdout.flush()
        if outcome.faults:
            raise InputError("\n".join(outcome.faults))

    return examine
