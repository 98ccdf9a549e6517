"""Raw files that people write or fetch, read strictly: a fault is named with file and line."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pandas as pd
from kedro.io.core import get_filepath_str
from kedro_datasets.pandas import JSONDataset
from kedro_datasets.yaml import YAMLDataset

from sami_pipeline.errors import InputError
from sami_pipeline.inputs import yaml_files


class StrictYamlDataset(YAMLDataset):
    """A YAML file whose repeated keys, broken lines and bombs are refused; see ``yaml_files``."""

    def load(self) -> Any:
        """Return what the file holds."""
        path = get_filepath_str(self._get_load_path(), self._protocol)
        return yaml_files.parse(self._fs.cat_file(path), path)


class JsonLinesDataset(JSONDataset):
    """A table with one JSON object a line; its values stay as written, none becomes a date."""

    def load(self) -> pd.DataFrame:
        """Return one row a line."""
        path = get_filepath_str(self._get_load_path(), self._protocol)
        rows = []
        for number, line in enumerate(self._fs.cat_file(path).splitlines(), start=1):
            if len(rows) == self._load_args.get("nrows"):
                break  # a preview
            if line.strip():
                rows.append(json_object(line, f"{path}: line {number}"))
        if not rows:
            raise InputError(f"{path}: is empty; it needs one JSON object a line")
        return pd.DataFrame(rows, dtype=object)


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """Return the object on a line of JSON; raises InputError with the place."""
    try:
        value = json.loads(
            line.decode("utf-8-sig"), parse_constant=_refuse, object_pairs_hook=_unique
        )
    except UnicodeDecodeError:
        raise InputError(f"{place}: is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is no valid JSON ({error}); mend or remove the line") from error
    if not isinstance(value, dict):
        raise InputError(f"{place}: is no object with fields; mend or remove the line")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
