"""What an experiment is: everything that the shared pipelines have to be told about it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import (
    baseline_training,
    data_ingest,
    dry_run,
    folded,
    reporting,
    sami_iterations,
    training_summary,
    with_datasets_under,
)

if TYPE_CHECKING:
    import pandas as pd
    from kedro.io import AbstractDataset

    from sami_pipeline.evaluation.asked import Asked, Known
    from sami_pipeline.evaluation.workload import Workload
    from sami_pipeline.reporting.comparison import Headline
    from sami_pipeline.reporting.run import Subject

P = TypeVar("P", bound=ExperimentParameters)


def _none(parameters: Any) -> Mapping[str, AbstractDataset]:
    """Return no raw files."""
    return {}


def _nothing_more(parameters: Any, made: Mapping[str, pd.DataFrame]) -> None:
    """Check nothing beyond what is checked for every experiment."""


@dataclass(frozen=True)
class Experiment(Generic[P]):
    """An experiment: its nodes fold into the shared pipelines, its datasets carry its name.

    Attributes:
        name: of its parameters, its pipeline and the folders of its results.
        parameters: the model of its parameters.
        subject: how its report speaks of it, and what the report's browser of answers shows.
        ingest: the nodes that make ``queries`` and what its evaluation asks, of raw files; they are
            added to those that import models and principles.
        evaluation: the nodes that measure and compare the models under test.
        evaluation_name: the pipeline that ``evaluation`` folds into.
        workload: how much it trains on and writes, of parameters and principles, for a dry run.
        asked: what its evaluation asks of whom, of parameters and what is known before the run;
            models that can't be asked it are refused.
        categories: what the principles of the catalog's ``principle_files`` may be written for;
            None for an experiment whose ``ingest`` makes ``principles`` itself.
        headlines: the figures that ``compare_runs`` shows, by the table that holds them.
        beside_queries: datasets of ``ingest`` that training may read besides the queries, such as
            the problems that tell a right solution from a wrong one.
        raw_files: datasets of ``ingest`` that the parameters name and not the catalog, by name.
        principles_alone: a node that makes ``principles`` of raw files and nothing else, for a dry
            run; None takes the one of ``categories``.
        check_inputs: raises InputError where the tables that ``ingest`` makes do not go together
            with the parameters; tables by name, as far as they are made in this run.
    """

    name: str
    parameters: type[P]
    subject: Subject
    ingest: Callable[[P], Pipeline]
    evaluation: Callable[[P], Pipeline]
    evaluation_name: str
    workload: Callable[[P, pd.DataFrame], Workload]
    asked: Callable[[P, Known], Iterator[Asked]]
    categories: tuple[str, ...] | None = None
    headlines: Mapping[str, Headline] = field(default_factory=dict)
    beside_queries: tuple[str, ...] = ()
    raw_files: Callable[[P], Mapping[str, AbstractDataset]] = _none
    principles_alone: Callable[[], Node] | None = None
    check_inputs: Callable[[P, Mapping[str, pd.DataFrame]], None] = _nothing_more

    def pipeline(self, parameters: P) -> Pipeline:
        """Return the whole experiment as these parameters want it.

        A node is ``sami_training.train_sami``, a dataset ``mt_bench.responses``.
        """
        earlier = {
            f"{model}_checkpoint": checkpoint
            for model, checkpoint in parameters.earlier_models().items()
            if model in parameters.models.under_test
        }
        ingest = data_ingest.create_pipeline(parameters, self.categories)
        baselines = baseline_training.create_pipeline(parameters, self.beside_queries)
        evaluation = self.evaluation(parameters)
        stages = (
            folded(ingest + self.ingest(parameters), "data_ingest")
            + sami_iterations.create_pipeline(parameters)
            + folded(baselines, "baseline_training")
            + folded(training_summary.create_pipeline(parameters), "training_summary")
            + Pipeline(folded(evaluation, self.evaluation_name), inputs=earlier)
        )
        report = folded(
            reporting.create_pipeline(self.name, self.subject, parameters, stages),
            "reporting",
        )
        return with_datasets_under(self.name, stages + Pipeline(report, inputs=earlier))

    def dry_run(self, parameters: P) -> Pipeline:
        """Return the pipeline that says what the experiment would need, and makes nothing."""
        return dry_run.create_pipeline(
            self.name,
            parameters,
            self.principles_node(),
            functools.partial(self.workload, parameters),
        )

    def principles_node(self) -> Node:
        """Return the node that makes ``principles`` of raw files and nothing else."""
        if self.principles_alone is not None:
            return self.principles_alone()
        return data_ingest.principles_node(self.categories or ())
