"""What is read from files that parameters name."""

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sami_pipeline.inputs.outside_files import parquet_table


def test_parquet_is_read_from_memory_that_needs_no_python(monkeypatch):
    """Arrow's threads may hold a Python file when Python ends, and then abort the process."""
    table = pd.DataFrame({"query": ["One?", "Zwölf?", None], "n": [1, 2, 3], "of": [["a"], [], []]})
    written = io.BytesIO()
    table.to_parquet(written)
    given = []
    read = pq.read_table

    def recorded(source, *rest, **named):
        given.append(source)
        return read(source, *rest, **named)

    monkeypatch.setattr(pq, "read_table", recorded)
    found = parquet_table(written.getvalue(), "here")
    assert given
    assert all(isinstance(source, pa.NativeFile) for source in given)
    assert not any(isinstance(source, pa.PythonFile) for source in given)
    pd.testing.assert_frame_equal(found, pd.read_parquet(written))
