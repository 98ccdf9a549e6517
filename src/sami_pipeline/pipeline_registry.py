"""The project's pipelines."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.experiments import experiment_parameters
from sami_pipeline.pipelines import mt_bench


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is the MT-Bench experiment.

    Besides the whole experiments, each shared pipeline can be run alone by its namespace:
    ``kedro run --pipeline mt_bench --namespaces mt_bench.sami_training``.
    """
    whole = mt_bench.create_pipeline(experiment_parameters(mt_bench.NAME))
    return {"__default__": whole, mt_bench.NAME: whole}
