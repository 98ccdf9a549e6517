"""Rows written side by side, each lane by its own threads.

One decoding step is about a thousand small operations. When all cores share each of them they wait
for each other at every one, and wait longest where another program keeps a core busy. Lanes share
nothing but the weights, so none waits for another.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import torch

from sami_pipeline.engines.rows import shared_length

T = TypeVar("T")
# Rotary embeddings of these kinds change a buffer of the model as they see longer rows.
_ROTARY_WITH_STATE = ("dynamic", "longrope")


def may_run_side_by_side(model: torch.nn.Module) -> bool:
    """Return whether several threads can run the model at once: on a CPU, if it keeps no state."""
    if next(model.parameters()).device.type != "cpu":
        return False  # one lane fills an accelerator
    kinds = (getattr(module, "rope_type", "default") for module in model.modules())
    named = [kind.values() if isinstance(kind, dict) else [kind] for kind in kinds]
    return not any(kind in _ROTARY_WITH_STATE for kind in itertools.chain.from_iterable(named))


def share_out(
    prompts: Sequence[Sequence[int]],
    costs: Sequence[float],
    homes: Sequence[int | None],
    lanes: int,
) -> list[list[int]]:
    """Share rows among lanes, about equal in cost; depends on nothing but the arguments.

    Rows of which most is read once for both (attempts at a problem, a question under two
    constitutions) stay together, as long as the lanes come out even.

    Args:
        prompts: token ids.
        costs: of each row.
        homes: the lane that has keys and values of most of a prompt already, or None.
        lanes: how many.

    Returns:
        the rows of each lane, in their order.
    """
    loads = [0.0] * lanes
    found: list[list[int]] = [[] for _ in range(lanes)]
    for i, home in enumerate(homes):
        if home is not None:
            found[home].append(i)
            loads[home] += costs[i]
    order = sorted(
        (i for i, home in enumerate(homes) if home is None), key=lambda i: (list(prompts[i]), i)
    )
    # No group is more than a quarter of what a lane gets.
    most = sum(costs) / lanes / 4
    groups: list[list[int]] = []
    for i in order:
        last = groups[-1] if groups else []
        longest = max(len(prompts[i]), *(len(prompts[j]) for j in last[-1:]), 1)
        near = bool(last) and 2 * shared_length(prompts[last[-1]], prompts[i]) >= longest
        if near and sum(costs[j] for j in last) + costs[i] <= most:
            last.append(i)
        else:
            groups.append([i])
    for group in sorted(groups, key=lambda group: -sum(costs[i] for i in group)):
        lane = loads.index(min(loads))
        found[lane] += group
        loads[lane] += sum(costs[i] for i in group)
    return [sorted(lane) for lane in found]


def side_by_side(
    writers: Sequence[Callable[[threading.Event], Iterator[T]]], threads: int
) -> Generator[T, None, None]:
    """Yield what writers give as it comes, each run by a thread with its share of ``threads``.

    With fewer threads than writers these run one after another, in this thread.

    Args:
        writers: take an event, and end soon after it is set.
        threads: of all writers together.

    Raises:
        BaseException: what a writer raises; the others are ended.
    """
    stop = threading.Event()
    if threads < len(writers) or len(writers) == 1:
        for writer in writers:
            yield from writer(stop)
        return
    pieces: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def run(writer: Callable[[threading.Event], Iterator[T]]) -> None:
        try:
            torch.set_num_threads(threads // len(writers))
            for piece in writer(stop):
                pieces.put(("piece", piece))
        except BaseException as error:  # raised again by the thread that asked
            pieces.put(("error", error))
        else:
            pieces.put(("end", None))

    running = [threading.Thread(target=run, args=(writer,), daemon=True) for writer in writers]
    try:
        for thread in running:
            thread.start()
        ended = 0
        while ended < len(running):
            kind, value = pieces.get()
            if kind == "piece":
                yield value
            elif kind == "error":
                raise value
            else:
                ended += 1
    finally:
        stop.set()
        for thread in running:
            thread.join()
        # Threads that start later, such as those of a backward pass, take the last number set.
        torch.set_num_threads(threads)
