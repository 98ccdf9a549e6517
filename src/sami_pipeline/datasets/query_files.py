"""Files that the parameters of align name: a table of any kind, and principles."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from kedro.io import AbstractDataset, DatasetError
from kedro.io.core import get_protocol_and_path

from sami_pipeline import files
from sami_pipeline.errors import InputError
from sami_pipeline.inputs import outside_files, text_files, yaml_files

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


class _NamedFile(AbstractDataset[NoReturn, Any]):
    """A raw input that a parameter names.

    Args:
        location: a path, relative to the project, or an address.
        parameter: full name of the parameter, for messages.
        project: folder of the project.
    """

    def __init__(self, location: str, parameter: str, project: Path) -> None:
        """Take where the file lies; nothing is read yet."""
        self._protocol, path = get_protocol_and_path(location)
        self._location, self._parameter = location, parameter
        self._filepath = str(project / files.from_home(path)) if self.is_local else location
        self.metadata = {"kedro-viz": {"layer": "raw"}}

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine."""
        return self._protocol == "file"

    def save(self, data: NoReturn) -> None:
        """Refuse: it is only read."""
        raise DatasetError(f"{self._filepath}: is an input only")

    def _exists(self) -> bool:
        return not self.is_local or Path(self._filepath).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath}

    @property
    def _place(self) -> str:
        return f"{self._parameter}: {self._filepath}"

    def _fault(self, what: str) -> InputError:
        return InputError(f"{self._place}: {what}")

    def _bytes(self) -> bytes:
        try:
            if self.is_local and not Path(self._filepath).exists():
                raise self._fault(f"does not exist; correct the path in {self._parameter}")
            if self.is_local and Path(self._filepath).is_dir():
                raise self._fault("is a folder; name a file")
        except OSError as error:  # such as a name that is too long
            raise self._fault(f"can't be read ({error.strerror}); correct the path") from error
        return outside_files.content_of(self._filepath, self._place)


class QueryTableFile(_NamedFile):
    """A table of queries: CSV, TSV, JSON lines or parquet, here or at an address."""

    def load(self) -> pd.DataFrame:
        """Return the table; texts stay as they are written."""
        suffix = Path(self._filepath.removesuffix(".gz")).suffix.lower()
        if suffix not in _TABLES:
            raise self._fault(
                f"ends in {suffix or 'nothing'}; known are {', '.join(_TABLES)}; "
                "save it as one of them (Excel: CSV UTF-8)"
            )
        content = self._bytes()
        if suffix == ".parquet":
            return self._filled(outside_files.parquet_table(content, self._place))
        if suffix == ".jsonl":
            rows = [row for _, row in text_files.json_lines(content, self._place)]
            return self._filled(pd.DataFrame(rows, dtype=object))
        text = text_files.decoded(content, self._place)
        return self._filled(self._separated(text, "\t" if suffix == ".tsv" else ","))

    def _separated(self, text: str, separator: str) -> pd.DataFrame:
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            rows = []
            for row in reader:
                if row and len(row) != len(header):
                    raise self._fault(
                        f"line {reader.line_num}: has {len(row)} fields, the header {len(header)}; "
                        "put texts that hold the separator into double quotes"
                    )
                rows += [row] if row else []
        except csv.Error as error:
            raise self._fault(f"line {reader.line_num}: {error}; correct the quotes") from error
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise self._fault(f"the column {twice[0]!r} stands twice; rename one")
        return pd.DataFrame(rows, columns=header, dtype=object)

    def _filled(self, table: pd.DataFrame) -> pd.DataFrame:
        if table.empty:
            raise self._fault("holds no rows; it needs names of columns, and one row a query")
        return table


class PrinciplesSource(_NamedFile):
    """Principles as they were written: a YAML file, or a folder of published constitutions."""

    def load(self) -> Any:
        """Return the YAML file's content, or that of every JSON file of a folder by its name."""
        path = Path(self._filepath)
        if not (self.is_local and path.is_dir()):
            return yaml_files.parse(self._bytes(), self._place)
        found = sorted(path.glob("*.json"))
        if not found:
            raise self._fault("is a folder without .json files; name a YAML file of principles")
        places = {file: f"{self._parameter}: {file}" for file in found}
        return {
            file.name: text_files.json_value(outside_files.content_of(str(file), place), place)
            for file, place in places.items()
        }
