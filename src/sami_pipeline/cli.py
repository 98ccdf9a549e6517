"""Kedro's commands for this project; ``kedro run`` is that of ``session.run_command``."""

from __future__ import annotations

import click

from sami_pipeline.session.run_command import run_command


@click.group(name="sami_pipeline")
def cli() -> None:
    """Hold the project's own commands, which Kedro puts before its own."""


# Kedro looks for both names.
run = run_command()
cli.add_command(run)
