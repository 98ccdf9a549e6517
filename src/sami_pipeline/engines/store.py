"""Completions on disk, kept as they come, so that nothing computed or paid for is lost.

A store is a folder. Every process that writes into it appends to its own file, one line for
each piece that an engine yields; a line that a kill cut short is passed over.

A completion has a key, which is all that determines its text, and says which code asked for it.
Other code finds it all the same: text that was paid for is not thrown away because a file changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sami_pipeline.engines.base import Completion, GenerationRequest
from sami_pipeline.errors import InputError, writing

logger = logging.getLogger(__name__)

# "failed" is asked again: the next run may have better luck.
_KEPT = ("stop", "length", "prompt_too_long")

# Part of the key, by kind of engine: raised where a change lets the same request have another text
# (prompt rendering, cutting at stop strings, sampling). tests/engines/test_text_versions.py sees
# that it is. The first version has no part in the key.
# vllm 2: a system text that the chat template leaves out is put in front of the user's.
# transformers 2, vllm 3: control tokens in texts are text, templates get a fixed date, and the
# template's end of turn ends a text. Here and for openai 2, thinking is no part of a text.
TEXT_VERSIONS = {"openai": 2, "transformers": 2, "vllm": 3}


@dataclass(frozen=True)
class StorePolicy:
    """What a run takes of stored completions.

    Attributes:
        ask_again: leave out those that other code has asked for.
        others: by store, the stores of other runs that are looked into too.
    """

    ask_again: bool = False
    others: Mapping[Path, Sequence[Path]] = field(default_factory=dict)


_policy = StorePolicy()
_taken = 0


def hand_over(policy: StorePolicy) -> None:
    """Let all stores follow a policy from now on."""
    global _policy
    _policy = policy


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
    version = TEXT_VERSIONS.get(identity.partition(" ")[0], 1)
    if version > 1:
        parts["text version"] = version
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def taken() -> int:
    """Return how many texts this process has taken from stores so far, instead of asking."""
    return _taken


class CompletionStore:
    """Completions by key, in a folder of JSON lines files.

    Any number of processes may read and write at once: none touches another's file.

    Args:
        folder: created when the first piece is written.
        code: version of the code that asks; "" where it is not known.
    """

    def __init__(self, folder: Path, code: str = "") -> None:
        self.folder, self.code = folder, code
        self._file: Path | None = None

    def take(self, keys: Collection[str], description: str) -> dict[str, Completion]:
        """Return what need not be asked, by the run's policy, and say where it comes from.

        What other runs hold is copied here, so that this run's results stay its own.
        """
        own = self._stored(keys)
        missing = set(keys) - own.keys()
        elsewhere: dict[str, _Stored] = {}
        for folder in _policy.others.get(self.folder, ()):
            if missing - elsewhere.keys():
                found = CompletionStore(folder, self.code)._stored(missing, pass_over=True)
                elsewhere = found | elsewhere
        earlier = {key for key, stored in (own | elsewhere).items() if stored.code != self.code}
        if _policy.ask_again:
            own, elsewhere = (
                {key: stored for key, stored in part.items() if key not in earlier}
                for part in (own, elsewhere)
            )
        elif earlier:
            logger.info(
                "%s: %d stored texts come from earlier code; completions=ask_again asks for them "
                "again", description, len(earlier),
            )  # fmt: skip
        if elsewhere:
            logger.info("%s: %d are taken from other runs", description, len(elsewhere))
            self._write(elsewhere)
        global _taken
        _taken += len(own) + len(elsewhere)
        return {key: stored.completion for key, stored in (own | elsewhere).items()}

    def find(self, keys: Collection[str]) -> dict[str, Completion]:
        """Return the stored completions of those keys that have one."""
        return {key: stored.completion for key, stored in self._stored(keys).items()}

    def add(self, completions: Mapping[str, Completion]) -> None:
        """Write a piece, whole or not at all; completions that failed are left out."""
        kept = {
            key: _Stored(completion, self.code)
            for key, completion in completions.items()
            if completion.finish_reason in _KEPT
        }
        if kept:
            self._write(kept)

    def _stored(self, keys: Collection[str], *, pass_over: bool = False) -> dict[str, _Stored]:
        """Return what is stored: of a key the text that this code asked for, or the latest.

        Args:
            keys: what is wanted.
            pass_over: read only lines that have one of the keys.
        """
        found: dict[str, _Stored] = {}
        wanted = set(keys)
        for path in sorted(self.folder.glob("*.jsonl"), key=_written):
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith("\n"):
                        continue  # cut short: the process was killed while it wrote
                    if pass_over and wanted.isdisjoint(_KEY.findall(line)):
                        continue
                    for key, stored in _completions(line, wanted, f"{path}, line {number}").items():
                        if key not in found or found[key].code != self.code:
                            found[key] = stored
        return found

    def _write(self, stored: Mapping[str, _Stored]) -> None:
        if self._file is None:
            self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        lines = {key: asdict(each.completion) | {"code": each.code} for key, each in stored.items()}
        with writing(self._file):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())


@dataclass(frozen=True)
class _Stored:
    completion: Completion
    code: str


_KEY = re.compile(r'"([0-9a-f]{64})": \{')


def _written(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


def _completions(line: str, wanted: Collection[str], place: str) -> dict[str, _Stored]:
    try:
        found = {key: fields for key, fields in json.loads(line).items() if key in wanted}
        return {
            key: _Stored(
                Completion(**fields | {"choice_logprobs": _tuple(fields["choice_logprobs"])}), code
            )
            for key, fields in found.items()
            for code in [fields.pop("code", "")]
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{place}: is no stored completion ({error}); delete the line, and what it held is "
            "asked again"
        ) from error


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
