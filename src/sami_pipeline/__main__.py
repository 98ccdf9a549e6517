"""Run a pipeline without Kedro's command: ``python -m sami_pipeline --pipelines mt_bench``.

As in every Kedro package; an installed wheel runs in a folder with ``conf`` (or ``--conf-source``)
and ``data``.
"""

from __future__ import annotations

import sys
from typing import Any

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main(*arguments: Any, **options: Any) -> Any:
    """Run as ``kedro run`` does, with the arguments of the command line if none are given."""
    package = __package__ or "sami_pipeline"
    configure_project(package)
    options.setdefault("standalone_mode", not hasattr(sys, "ps1"))
    return find_run_command(package)(*arguments, **options)


if __name__ == "__main__":
    main()
