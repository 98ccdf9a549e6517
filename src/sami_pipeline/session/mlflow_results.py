"""A run's parameters and results in MLflow, where the plugin kedro-mlflow is installed.

The plugin begins and ends MLflow's run and tells it what Kedro was asked for. What is added here:
every parameter by its full name, headline figures as metrics, and figures and the report as files.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from sami_pipeline.experiments.registry import experiments
from sami_pipeline.reporting.comparison import Headline
from sami_pipeline.reporting.run import flattened
from sami_pipeline.session import provenance
from sami_pipeline.session.experiments import experiment_parameters

# MLflow takes no more at once, and no longer values.
_AT_ONCE = 100
_LONGEST = 6000
_FILES = ("report", "run_record")


def log(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Log what a pipeline has made to MLflow's active run, if there is one.

    Args:
        pipeline: that has run.
        catalog: holds what it made.
    """
    mlflow = sys.modules.get("mlflow")  # which the plugin has imported, if it is there
    if mlflow is None or mlflow.active_run() is None:
        return
    made = sorted(pipeline.all_outputs())
    for name, experiment in experiments().items():
        if not any(dataset.startswith(f"{name}.") for dataset in made):
            continue
        values = flattened({name: experiment_parameters(name).model_dump(mode="json")})
        texts = [(key, str(value)[:_LONGEST]) for key, value in values.items()]
        for start in range(0, len(texts), _AT_ONCE):
            mlflow.log_params(dict(texts[start : start + _AT_ONCE]))
        for table, headline in experiment.headlines.items():
            if (dataset := f"{name}.{table}") in made:
                mlflow.log_metrics(dict(_metrics(name, headline, catalog.load(dataset))))
    for dataset in made:
        experiment, _, short = dataset.rpartition(".")
        place = provenance.place(catalog.get(dataset))
        if (short.startswith("figure_") or short in _FILES) and place is not None:
            mlflow.log_artifact(str(Path(place)), artifact_path=experiment or None)


def _metrics(experiment: str, headline: Headline, table: Any) -> Iterator[tuple[str, float]]:
    """Yield each headline figure and the ends of its interval, by a name that MLflow takes."""
    for row in headline.read(table).to_dict("records"):
        name = re.sub(r"[^\w.\- ]", "", f"{row['metric']} of {row['model']}")
        for column, end in (("value", ""), ("ci_low", " - low"), ("ci_high", " - high")):
            if not math.isnan(row[column]):
                yield f"{experiment}/{name}{end}", float(row[column])
