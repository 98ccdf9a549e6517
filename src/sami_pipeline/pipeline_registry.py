"""The project's pipelines."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.experiments.registry import experiments, headlines
from sami_pipeline.pipelines import compare_runs, folded, published, write_principles
from sami_pipeline.session import graph
from sami_pipeline.session.experiments import (
    experiment_parameters,
    is_dry_run,
    principle_writing_parameters,
)


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is all experiments.

    An experiment folds into the shared pipelines, and each can be run alone by its namespace:
    ``kedro run --pipelines mt_bench --namespaces sami_training``. All experiments together fold
    into themselves first: ``kedro run --namespaces mt_bench.sami_training``. ``compare_runs`` puts
    finished runs side by side, ``published`` puts the paper's own answers and verdicts through our
    statistics, ``write_principles`` asks a model for principles. With the parameter ``dry_run`` an
    experiment is one node that says what it would need.
    """
    whole = {
        name: experiment.dry_run(experiment_parameters(name))
        if is_dry_run()
        else experiment.pipeline(experiment_parameters(name))
        for name, experiment in experiments().items()
    }
    writing = write_principles.create_pipeline(principle_writing_parameters(write_principles.NAME))
    pipelines = {
        "__default__": sum((folded(whole[name], name) for name in whole), Pipeline([])),
        **whole,
        "compare_runs": compare_runs.create_pipeline(headlines()),
        published.NAME: published.create_pipeline(),
        write_principles.NAME: writing,
    }
    if not graph.is_shown():
        return pipelines
    graph.serve_reports()
    return graph.without_folders(pipelines)
