"""What kedro-viz shows: the graph without working folders, and reports that open from it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.datasets.previews import REPORTS

# Folders in which nodes keep their own progress: inputs, since Kedro has no other name for them.
_FOLDERS = (".completions", "_training_state", "_trackers", ".node_records")
_VIEWER = "kedro_viz.server"


def is_shown() -> bool:
    """Return whether this process shows the graph and runs nothing."""
    return _VIEWER in sys.modules


def without_folders(pipelines: Mapping[str, Pipeline]) -> dict[str, Pipeline]:
    """Return pipelines to look at: without the folders that are inputs and hold no data.

    They belong to no layer: each would be drawn as an input in a row by itself.
    """
    return {
        name: Pipeline([_without_folders(node) for node in pipeline.nodes])
        for name, pipeline in pipelines.items()
    }


def _without_folders(node: Node) -> Node:
    if not any(_is_folder(name) for name in node.inputs):
        return node
    given = node._inputs
    if not isinstance(given, dict):
        names = [given] if isinstance(given, str) else given
        given = dict(zip(inspect.signature(node.func).parameters, names, strict=True))
    kept = {name: dataset for name, dataset in given.items() if not _is_folder(dataset)}
    return node._copy(func=_with_arguments(node.func, set(given) - set(kept)), inputs=kept)


def _with_arguments(function: Callable[..., Any], left_out: set[str]) -> Callable[..., Any]:
    """Return a function to look at, which seems to lack some arguments."""

    @functools.wraps(function)
    def shown(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    signature = inspect.signature(function)
    kept = [each for name, each in signature.parameters.items() if name not in left_out]
    shown.__signature__ = signature.replace(parameters=kept)
    return shown


def _is_folder(name: str) -> bool:
    return f".{name}".endswith(_FOLDERS)


def serve_reports(folder: Path = PROJECT_FOLDER / "data" / "08_reporting") -> None:
    """Let the server of ``kedro viz run`` give out the reports that its graph links to.

    Args:
        folder: the pages below it are given out, and nothing else.
    """
    from fastapi import HTTPException
    from fastapi.responses import FileResponse
    from kedro_viz.api.rest.router import router

    if any(REPORTS in getattr(route, "path", "") for route in router.routes):
        return

    @router.get(f"/{REPORTS}/{{place:path}}")
    def report(place: str) -> Any:
        path = (folder / place).resolve()
        if path.suffix != ".html" or not path.is_relative_to(folder.resolve()):
            raise HTTPException(404)
        if not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type="text/html")
