"""The project's pipelines."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.pipelines import (
    compare_runs,
    dry_run,
    folded,
    math,
    mt_bench,
    write_principles,
)
from sami_pipeline.session.experiments import (
    experiment_parameters,
    is_dry_run,
    principle_writing_parameters,
)


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is both experiments.

    An experiment folds into the shared pipelines, and each can be run alone by its namespace:
    ``kedro run --pipelines mt_bench --namespaces sami_training``. Both experiments together fold
    into the two first: ``kedro run --namespaces mt_bench.sami_training``. ``compare_runs`` puts
    finished runs side by side, ``write_principles`` asks a model for principles. With the
    parameter ``dry_run`` an experiment is one node that says what it would need.
    """
    whole = {
        experiment.NAME: dry_run.create_pipeline(
            experiment.NAME, experiment_parameters(experiment.NAME)
        )
        if is_dry_run()
        else experiment.create_pipeline(experiment_parameters(experiment.NAME))
        for experiment in (mt_bench, math)
    }
    writing = write_principles.create_pipeline(principle_writing_parameters(write_principles.NAME))
    return {
        "__default__": sum((folded(whole[name], name) for name in whole), Pipeline([])),
        **whole,
        "compare_runs": compare_runs.create_pipeline(),
        write_principles.NAME: writing,
    }
