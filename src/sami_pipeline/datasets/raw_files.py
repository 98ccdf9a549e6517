"""Raw files that people write or fetch, read strictly: a fault is named with file and line."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from kedro.io.core import get_filepath_str
from kedro_datasets.pandas import JSONDataset
from kedro_datasets.yaml import YAMLDataset

from sami_pipeline.errors import InputError
from sami_pipeline.inputs import text_files, yaml_files


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
        lines = text_files.json_lines(self._fs.cat_file(path), path)
        # A preview takes the first rows.
        rows = [row for _, row in itertools.islice(lines, self._load_args.get("nrows"))]
        if not rows:
            raise InputError(f"{path}: is empty; it needs one JSON object a line")
        return pd.DataFrame(rows, dtype=object)
