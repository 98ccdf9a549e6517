"""Hooks: the graph follows the parameters, and a run ends with a summary."""

from __future__ import annotations

import sys
import time
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from sami_pipeline import experiments, summary


class GraphFollowsParameters:
    """Lets the models under test named in the parameters decide which nodes there are."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Activate the parameters of this session before its pipelines are built."""
        from kedro.framework.project import PACKAGE_NAME, pipelines

        experiments.activate(context.config_loader["parameters"])
        pipelines.configure(f"{PACKAGE_NAME}.pipeline_registry")


class RunSummary:
    """Prints what a run made and where it lies."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Print the tables and places of this run's results."""
        sys.stdout.write(summary.of_run(pipeline, catalog, time.monotonic() - self._started))
        sys.stdout.flush()
