"""What the header of a GGUF file says, read in a moment.

The package gguf reads all tokens and merges one by one, seconds for each start of a run. Here they
are passed over. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# By number of the type, how a value is packed.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_LONGEST_TEXT = 2**24
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of its model.

    Attributes:
        values: numbers and texts by name; of lists, their lengths.
        size: bytes that the whole file has.
    """

    values: Mapping[str, Any]
    size: int

    @property
    def architecture(self) -> str:
        """The kind of model, such as llama."""
        return str(self.values.get("general.architecture", ""))

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and response together, where the file says it."""
        return self.values.get(f"{self.architecture}.context_length")


def read_header(path: Path) -> GgufHeader:
    """Return the header of a file, whose tensors are not read.

    Raises:
        ValueError: it is no GGUF file, of an unknown version, or cut short.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("is no GGUF file")
        try:
            (version,) = _unpack(file, "I")
            if version not in _VERSIONS:
                raise ValueError(f"is of version {version} of GGUF; known are 2 and 3")
            tensors, entries = _unpack(file, "QQ")
            values = {}
            for _ in range(entries):
                name = _text(file)
                values[name] = _value(file, *_unpack(file, "I"))
            ends = [_end_of_tensor(file) for _ in range(tensors)]
        except (struct.error, OverflowError, UnicodeDecodeError, MemoryError) as error:
            raise ValueError("is cut short or damaged in its header") from error
        alignment = values.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
    header = GgufHeader(values, start + max(ends, default=0))
    if (size := path.stat().st_size) < header.size:
        raise ValueError(f"is cut short: {size} bytes of {header.size}")
    return header


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _LONGEST_TEXT:
        raise OverflowError
    content = file.read(length)
    if len(content) < length:
        raise OverflowError
    return content.decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _unpack(file, _SCALARS.get(kind, "x"))[0]
    item, count = _unpack(file, "IQ")
    if item == _STRING:
        for _ in range(count):
            (length,) = _unpack(file, "Q")
            file.seek(length, 1)
    elif item in _SCALARS:
        file.seek(count * struct.calcsize(f"<{_SCALARS[item]}"), 1)
    else:
        raise OverflowError
    return count


def _end_of_tensor(file: BinaryIO) -> int:
    """Return where the data of the tensor that is described next ends."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    _text(file)
    (dimensions,) = _unpack(file, "I")
    if dimensions > _MOST_DIMENSIONS:
        raise OverflowError
    shape = _unpack(file, "Q" * dimensions)
    kind, offset = _unpack(file, "IQ")
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError as error:
        raise OverflowError from error
    return offset + math.prod(shape) // block * size
