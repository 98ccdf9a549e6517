"""published: the paper's own answers and verdicts, through the statistics that ours go through."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.pipelines.mt_bench_eval.nodes import drawing
from sami_pipeline.pipelines.published import nodes
from sami_pipeline.result_tables import degeneration, win_rates
from sami_pipeline.vocabulary import RAW

NAME = "published"
_SHOWN = (
    "answers", "verdicts", "win_rates", "length_controlled", "degeneration", "figure_win_rates",
    "figure_lengths",
)  # fmt: skip


def create_pipeline() -> Pipeline:
    """Return the pipeline that tabulates published results; parameters ``published``."""
    return Pipeline(
        [
            Node(
                nodes.collect_published,
                inputs="params:published",
                outputs=["answers", "verdicts"],
                name="collect_published",
                tags=RAW,
            ),
            Node(
                win_rates.make,
                inputs="verdicts",
                outputs="win_rates",
                name="tabulate_win_rates",
            ),
            Node(
                nodes.tabulate_length_controlled,
                inputs=["verdicts", "answers", "params:published"],
                outputs="length_controlled",
                name="tabulate_length_controlled",
            ),
            Node(
                degeneration.make,
                inputs="answers",
                outputs="degeneration",
                name="tabulate_degeneration",
            ),
            Node(
                nodes.draw_win_rates,
                inputs=["win_rates", "params:published"],
                outputs="figure_win_rates",
                name="draw_win_rates",
            ),
            Node(
                drawing.draw_lengths,
                inputs="degeneration",
                outputs="figure_lengths",
                name="draw_lengths",
            ),
            Node(
                nodes.write_report,
                inputs={
                    "node_records": "node_records",
                    "parameters": "params:published",
                    **{name: name for name in _SHOWN},
                },
                outputs="report",
                name="write_report",
            ),
        ],
        namespace=NAME,
        parameters={NAME},
    )
