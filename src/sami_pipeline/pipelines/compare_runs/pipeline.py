"""compare_runs: several runs in one table and one figure."""

from __future__ import annotations

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from sami_pipeline.pipelines import bind
from sami_pipeline.pipelines.compare_runs.nodes import (
    compare,
    draw_comparison,
    tabulate_differences,
    write_page,
)
from sami_pipeline.reporting.comparison import Headline


def create_pipeline(headlines: Mapping[str, Headline]) -> Pipeline:
    """Return the pipeline that compares the finished runs below data/08_reporting.

    Args:
        headlines: the figures that are compared, by ``EXPERIMENT/TABLE``.
    """
    return Pipeline(
        [
            Node(
                bind(compare, headlines=headlines),
                inputs=["results", "outputs", "records", "params:compare_runs"],
                outputs=["comparison", "run_differences"],
                name="compare",
            ),
            Node(
                tabulate_differences,
                inputs=["records", "params:compare_runs"],
                outputs="parameter_differences",
                name="tabulate_differences",
            ),
            Node(
                draw_comparison,
                inputs="comparison",
                outputs="figure_comparison",
                name="draw_comparison",
            ),
            Node(
                write_page,
                inputs=[
                    "comparison",
                    "run_differences",
                    "parameter_differences",
                    "figure_comparison",
                ],
                outputs="report",
                name="write_report",
            ),
        ],
        namespace="compare_runs",
        parameters={"compare_runs"},
    )
