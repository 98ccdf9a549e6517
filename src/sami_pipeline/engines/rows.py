"""The rows of a batch that never stands still: prompts are read, tokens written, ended rows leave.

``Rows`` is what ``TransformersEngine`` runs; it knows models and caches, not requests.
"""

from __future__ import annotations

import bisect
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from sami_pipeline.engines.base import SamplingParameters
from sami_pipeline.engines.row_cache import RowCache
from sami_pipeline.engines.step_graphs import StepGraphs

# A shorter beginning that prompts share is read for each of them: a separate pass costs more.
_WORTH_SHARING = 16
# Tokens, padding included, that the model reads in one pass. A GPU needs more to have enough to do.
_TOKENS_AT_ONCE = 1024
_TOKENS_AT_ONCE_ON_GPU = 8192


@dataclass
class Row:
    """One response that is being written.

    Attributes:
        index: of its request.
        prompt: token ids.
        sampling: how it is drawn.
        uniforms: a number in [0, 1) for each token; empty for greedy rows.
        goes_on: see ``GenerationRequest``.
        written: token ids of the response so far.
    """

    index: int
    prompt: list[int]
    sampling: SamplingParameters
    uniforms: np.ndarray
    goes_on: bool = False
    written: list[int] = field(default_factory=list)

    @property
    def cached(self) -> list[int]:
        """The tokens whose keys and values the cache holds: all but the last written one."""
        return self.prompt + self.written[:-1]


class KeptPrefixes:
    """Keys and values of rows that have ended, for prompts that begin with what they read.

    Args:
        limit: bytes; the ones used longest ago go first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._kept: OrderedDict[tuple[int, ...], list[torch.Tensor]] = OrderedDict()
        self._sorted: list[tuple[int, ...]] = []

    def add(self, ids: Sequence[int], taken: list[torch.Tensor]) -> None:
        """Keep what a cache holds of these tokens."""
        key = tuple(ids)
        if key in self._kept:
            return
        self.size += _bytes(taken)
        self._kept[key] = taken
        bisect.insort(self._sorted, key)
        while self.size > self.limit:
            oldest, dropped = self._kept.popitem(last=False)
            self.size -= _bytes(dropped)
            del self._sorted[bisect.bisect_left(self._sorted, oldest)]

    def find(self, ids: Sequence[int]) -> tuple[int, list[torch.Tensor]]:
        """Return the length of the longest beginning that is kept, and what is kept of it."""
        key = tuple(ids)
        place = bisect.bisect_left(self._sorted, key)
        # What shares most stands next to it in lexicographic order.
        best, length = None, 0
        for near in self._sorted[max(0, place - 1) : place + 1]:
            if (shared := shared_length(near, key)) > length:
                best, length = near, shared
        if best is None:
            return 0, []
        self._kept.move_to_end(best)
        return length, self._kept[best]


def _bytes(taken: Sequence[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in taken)


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their start."""
    most = min(len(one), len(other))
    return next((i for i in range(most) if one[i] != other[i]), most)


def cache_argument(model: PreTrainedModel) -> str:
    """Return what a model calls the cache that it is given."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class Rows:
    """Rows that are read and written together.

    Args:
        model: a causal language model whose attention is ``row_cache.ATTENTION``.
        slots: rows at once.
        kept_bytes: what keys and values of ended rows may take.
    """

    def __init__(self, model: PreTrainedModel, slots: int, kept_bytes: int) -> None:
        self.model = model
        self.slots = slots
        self.active: list[Row] = []
        self.kept = KeptPrefixes(kept_bytes)
        self._cache = RowCache(slots, model.device)
        self._cache_argument = cache_argument(model)
        on_gpu = model.device.type == "cuda"
        self._tokens_at_once = _TOKENS_AT_ONCE_ON_GPU if on_gpu else _TOKENS_AT_ONCE
        self._graphs = StepGraphs(self._run, self._cache) if on_gpu else None

    def read(self, arriving: Sequence[Row]) -> torch.Tensor:
        """Let rows in and read their prompts; return the logits after them, (rows, vocabulary).

        What a kept row, a row that is being written or another arriving one has read already is
        copied.
        """
        base = len(self.active)
        self.active.extend(arriving)
        have = [self._copy_known(base + i, row.prompt) for i, row in enumerate(arriving)]
        logits: list[torch.Tensor | None] = [None] * len(arriving)
        for goals, copies in _reading_plan([row.prompt for row in arriving], have):
            self._read_to(base, arriving, have, goals, logits)
            for source, target, length in copies:
                self._cache.copy(base + source, base + target, length)
                have[target] = length
        return torch.stack([each for each in logits if each is not None])

    def step(self) -> torch.Tensor:
        """Read the last token of every active row; return the logits after it."""
        rows = self.active
        starts = [len(row.prompt) + len(row.written) - 1 for row in rows]
        if self._graphs is not None:
            return self._graphs.logits([row.written[-1] for row in rows], starts)
        tokens = [[row.written[-1]] for row in rows]
        return self._forward(range(len(rows)), tokens, starts)

    def leave(self, ended: Sequence[int], *, others_wait: bool) -> None:
        """Let rows go by their places in ``active``; the last ones move into the gaps.

        Args:
            ended: places.
            others_wait: whether rows are still to come that may begin like these; else what has
                been read is kept of those alone that go on.
        """
        for place in sorted(ended, reverse=True):
            row = self.active[place]
            cached = row.cached
            wanted = others_wait or row.goes_on
            if wanted and self.kept.limit and len(cached) >= _WORTH_SHARING:
                self.kept.add(cached, self._cache.take(place, len(cached)))
            last = len(self.active) - 1
            if place != last:
                moved = self.active[last]
                self._cache.copy(last, place, len(moved.cached))
                self.active[place] = moved
            self.active.pop()

    def clear(self) -> None:
        """Let all rows go."""
        self.active.clear()

    def _copy_known(self, slot: int, prompt: Sequence[int]) -> int:
        """Fill a slot with what is known of a prompt but its last token; return how much it is."""
        usable = prompt[:-1]
        length, taken = self.kept.find(usable)
        source = None
        for other, row in enumerate(self.active[:slot]):
            if row.written and (shared := shared_length(row.cached, usable)) > length:
                length, source = shared, other
        if length < _WORTH_SHARING:
            return 0
        self._cache.reserve(length)
        if source is None:
            self._cache.put(slot, taken, length)
        else:
            self._cache.copy(source, slot, length)
        return length

    def _read_to(
        self,
        base: int,
        rows: Sequence[Row],
        have: list[int],
        goals: dict[int, int],
        logits: list[torch.Tensor | None],
    ) -> None:
        """Read prompts up to a goal each, those of similar length together.

        Args:
            base: slot of the first row.
            rows: that arrive.
            have: tokens of each prompt that its slot has; brought up to date.
            goals: tokens to have, by number of the row.
            logits: of each row that has read its whole prompt; filled in.
        """
        order = sorted(goals, key=lambda i: have[i] - goals[i])
        while order:
            width = min(goals[order[0]] - have[order[0]], self._tokens_at_once)
            batch = [
                i
                for i in order[: max(1, self._tokens_at_once // width)]
                if 4 * (goals[i] - have[i]) >= 3 * width
            ]
            counts = [min(goals[i] - have[i], width) for i in batch]
            tokens = [
                rows[i].prompt[have[i] : have[i] + count]
                for i, count in zip(batch, counts, strict=True)
            ]
            found = self._forward([base + i for i in batch], tokens, [have[i] for i in batch])
            for i, count, row_logits in zip(batch, counts, found, strict=True):
                have[i] += count
                if have[i] == len(rows[i].prompt):
                    logits[i] = row_logits
            order = sorted(
                (i for i in order if have[i] < goals[i]), key=lambda i: have[i] - goals[i]
            )

    def _forward(
        self, slots: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> torch.Tensor:
        """Run the model over new tokens of some rows; return the logits after the last ones."""
        queries = max(map(len, tokens))
        padded = [[each[0]] * (queries - len(each)) + list(each) for each in tokens]
        self._cache.prepare(slots, starts, [len(each) for each in tokens])
        return self._run(torch.tensor(padded, device=self.model.device))

    def _run(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the model where the cache has been told; return the logits after the last tokens."""
        output = self.model(
            input_ids=input_ids,
            position_ids=self._cache.positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: self._cache},
        )
        return output.logits[:, -1]


def _reading_plan(
    prompts: Sequence[Sequence[int]], have: Sequence[int]
) -> list[tuple[dict[int, int], list[tuple[int, int, int]]]]:
    """Say in which rounds prompts are read, so that what some of them share is read once.

    Args:
        prompts: token ids.
        have: tokens of each that need no reading.

    Returns:
        rounds of (tokens that each row in it has read at the end, copies (from, to, length) that
        follow).
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    # What each shares with the next one, in lexicographic order. A last token is always read: the
    # logits after it are wanted.
    shared = [
        min(shared_length(prompts[a], prompts[b]), len(prompts[a]) - 1, len(prompts[b]) - 1)
        for a, b in itertools.pairwise(order)
    ]
    known = list(have)
    rounds = []
    while True:
        goals: dict[int, int] = {}
        copies: list[tuple[int, int, int]] = []
        for cluster, length in _clusters(order, shared, known):
            reader = max(cluster, key=lambda i: known[i])
            goals[reader] = length
            copies += [(reader, i, length) for i in cluster if i != reader and known[i] < length]
        if not goals:
            break
        rounds.append(({i: goal for i, goal in goals.items() if goal > known[i]}, copies))
        for reader, goal in goals.items():
            known[reader] = max(known[reader], goal)
        for _, target, length in copies:
            known[target] = length
    rounds.append(({i: len(prompt) for i, prompt in enumerate(prompts)}, []))
    return rounds


def _clusters(
    order: Sequence[int], shared: Sequence[int], known: Sequence[int]
) -> list[tuple[list[int], int]]:
    """Return groups of neighbours that share clearly more than they know, and how much it is."""
    found = []
    cluster, length = [order[0]], 0
    for place, common in enumerate(shared):
        following = order[place + 1]
        least = min(known[i] for i in (*cluster, following))
        if common >= least + _WORTH_SHARING:
            length = common if len(cluster) == 1 else min(length, common)
            cluster.append(following)
        else:
            if len(cluster) > 1:
                found.append((cluster, length))
            cluster, length = [following], 0
    if len(cluster) > 1:
        found.append((cluster, length))
    return found
