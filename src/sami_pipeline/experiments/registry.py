"""The list of experiments; another one is a file in this folder, and a line here."""

from __future__ import annotations

from sami_pipeline.experiments import align, math, mt_bench
from sami_pipeline.experiments.record import Experiment
from sami_pipeline.reporting.comparison import Headline

_EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (mt_bench.EXPERIMENT, math.EXPERIMENT, align.EXPERIMENT)
}


def register(experiment: Experiment) -> None:
    """Add an experiment from outside this package, before a session begins.

    Raises:
        ValueError: another one has its name.
    """
    if experiment.name in _EXPERIMENTS:
        raise ValueError(f"an experiment is called {experiment.name!r} already")
    _EXPERIMENTS[experiment.name] = experiment


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name, in their order."""
    return dict(_EXPERIMENTS)


def headlines() -> dict[str, Headline]:
    """Return the figures that ``compare_runs`` shows, by ``EXPERIMENT/TABLE``."""
    return {
        f"{name}/{table}": headline
        for name, experiment in _EXPERIMENTS.items()
        for table, headline in experiment.headlines.items()
    }
