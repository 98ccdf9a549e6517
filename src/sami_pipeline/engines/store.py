"""Completions on disk, kept as they come, so that nothing computed or paid for is lost.

A store is a folder. Every process that writes into it appends to a file of its own, one line for
each piece that an engine yields; a line that a kill cut short is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

from sami_pipeline.engines.base import Completion, GenerationRequest
from sami_pipeline.errors import InputError, writing

# "failed" is asked again: the next run may have better luck.
_KEPT = ("stop", "length", "prompt_too_long")


def completion_key(identity: str, request: GenerationRequest, seed: int) -> str:
    """Return the name of a completion: a hash of all that determines it.

    Args:
        identity: the engine's.
        request: what was asked.
        seed: counts for sampled responses only; greedy ones are the same under any.
    """
    sampled = request.sampling.temperature > 0
    parts = {
        "engine": identity,
        "prompt": request.prompt.to_json(),
        "sampling": asdict(request.sampling),
        "sample": request.sample if sampled else 0,
        "seed": seed if sampled else 0,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class CompletionStore:
    """Completions by key, in a folder of JSON lines files.

    Any number of processes may read and write at once: none touches another's file.

    Args:
        folder: created when the first piece is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: Path | None = None

    def find(self, keys: Collection[str]) -> dict[str, Completion]:
        """Return the stored completions of those keys that have one."""
        found: dict[str, Completion] = {}
        wanted = set(keys)
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith("\n"):
                        continue  # cut short: the process was killed while it wrote
                    found |= _completions(line, wanted, f"{path}, line {number}")
        return found

    def add(self, completions: Mapping[str, Completion]) -> None:
        """Write a piece, whole or not at all; completions that failed are left out."""
        kept = {
            key: asdict(completion)
            for key, completion in completions.items()
            if completion.finish_reason in _KEPT
        }
        if not kept:
            return
        if self._file is None:
            self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        with writing(self._file):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _completions(line: str, wanted: Collection[str], place: str) -> dict[str, Completion]:
    try:
        return {
            key: Completion(**fields | {"choice_logprobs": _tuple(fields["choice_logprobs"])})
            for key, fields in json.loads(line).items()
            if key in wanted
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{place}: is no stored completion ({error}); delete the line, and what it held is "
            "asked again"
        ) from error


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
