"""Files of kedro-datasets with a preview that kedro-viz can show."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kedro_datasets._typing import HTMLPreview, TablePreview
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets.text import TextDataset

# A longer text makes its row higher than the panel, which then looks empty.
_SHOWN_CHARACTERS = 60
REPORTS = "reports"


class TextTable(ParquetDataset):
    """A parquet table whose texts are cut short in its preview, so that rows can be seen."""

    def preview(self, nrows: int = 20) -> TablePreview:
        """Return the first rows.

        Args:
            nrows: how many.
        """
        preview = super().preview(nrows)
        return {**preview, "data": [[_short(value) for value in row] for row in preview["data"]]}


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


class ReportPage(TextDataset):
    """A report, whose preview says what came out and opens it."""

    def preview(self) -> HTMLPreview:
        """Return the outcome that stands in the record next to the report, and a link to it.

        The link leads to the server of ``kedro viz run``; see ``session.graph``.
        """
        page = Path(str(self._filepath))
        record, lines = page.with_name("run_record.json"), []
        if record.is_file():
            for card in json.loads(record.read_text("utf-8")).get("outcome", []):
                first = card["findings"][0]
                said = f"{first['model']} against {first['other']} {first['value']} " + (
                    f"{first['interval']}: {first['verdict']}"
                )
                lines.append(f"<li><b>{escape(card['title'])}</b>: {escape(said)}</li>")
        # Kedro-viz takes what stands between two underscores for emphasis, in addresses too.
        place = quote("/".join(page.parts[-3:])).replace("_", "%5F")
        return (
            f'<p><a href="/api/{REPORTS}/{place}"><u>Open the report</u></a></p>'
            f"<ul>{''.join(lines).replace('_', ' ')}</ul>"
        )
