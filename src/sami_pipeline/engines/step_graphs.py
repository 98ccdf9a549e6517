"""Decoding steps on a GPU as CUDA graphs: recorded once, then started in one call.

A step of a small model starts about forty kernels a layer, which takes the processor several times
as long as the GPU needs to run them. A recorded graph starts all of them at once. Its shapes and
addresses are fixed, so rows are filled up to a power of two and keys to a multiple of ``_KEYS``,
and each such size has a graph. The keys that this adds are masked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from sami_pipeline.engines.row_cache import RowCache
from sami_pipeline.errors import one_line

logger = logging.getLogger(__name__)

# Keys of a step, rounded up. A graph serves so many steps of the longest row.
_KEYS = 128
# Each holds a few MB on the GPU; more sizes than this are those of rows that have gone.
_MOST_GRAPHS = 64


class StepGraphs:
    """One more token of every row, for a model and a cache.

    A size is computed plainly the first time that it comes, recorded the second time, and replayed
    from then on. A model that can't be recorded (one that waits for the GPU in the middle of a
    step, such as a mixture that counts its experts' tokens) is computed plainly, which is logged.

    Args:
        forward: runs the model over (rows, 1) token ids, at the places that the cache was told of;
            returns logits (rows, vocabulary).
        cache: of the rows, which stand in its first slots.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], cache: RowCache) -> None:
        self._forward = forward
        self._cache = cache
        # Token, position, and where its keys are written, for every slot: graphs read them here.
        self._inputs = torch.zeros(3, cache.slots, 1, dtype=torch.long, device=cache.device)
        self._logits: torch.Tensor | None = None
        # By rows and keys; None has been computed plainly once.
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self._capacity = 0
        self._pool: tuple[int, int] | None = None
        self._records = cache.device.type == "cuda"

    def logits(self, tokens: Sequence[int], starts: Sequence[int]) -> torch.Tensor:
        """Return the logits after a token of each row, (rows, vocabulary), until the next call.

        Args:
            tokens: the last one of each row.
            starts: positions that each row has already.
        """
        count, longest = len(tokens), max(starts) + 1
        self._cache.reserve(longest)
        size = self._size(count, longest)
        rows, width = size
        places = torch.zeros(3, rows, 1, dtype=torch.long)
        places[:2, :count, 0] = torch.tensor([tokens, starts])
        places[2] = self._cache.capacity - 1  # what no row is there for is written where padding is
        places[2, :count] = places[1, :count]
        self._inputs[:, :rows].copy_(places)
        self._cache.point(rows, width, self._inputs[1, :rows], self._inputs[2, :rows])
        if self._records and size not in self._graphs:
            self._graphs[size] = None
        elif self._records and self._graphs[size] is None:
            self._record(size)
        graph = self._graphs.get(size)
        if graph is None:
            return self._forward(self._inputs[0, :rows])[:count]
        graph.replay()
        return self._logits[:count]

    def _size(self, rows: int, keys: int) -> tuple[int, int]:
        """Return how many rows and keys are computed; forgets graphs of keys that lie elsewhere."""
        if self._capacity != self._cache.capacity or len(self._graphs) > _MOST_GRAPHS:
            self._graphs.clear()
            self._capacity = self._cache.capacity
        # The cache grows by a multiple of _KEYS, and its last position is never a key.
        return min(self._cache.slots, 1 << (rows - 1).bit_length()), -(-keys // _KEYS) * _KEYS

    def _record(self, size: tuple[int, int]) -> None:
        ids = self._inputs[0, : size[0]]
        graph = torch.cuda.CUDAGraph()
        try:
            # Left on the stream that it came from, also where recording ends with an error.
            with torch.cuda.stream(torch.cuda.current_stream()):
                if self._logits is None:
                    logits = self._forward(ids)
                    self._logits = logits.new_empty(self._cache.slots, logits.shape[-1])
                    self._pool = torch.cuda.graph_pool_handle()
                with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                    self._logits[: size[0]].copy_(self._forward(ids))
        except Exception as error:  # whatever a model's own code does that can't be recorded
            self._records = False
            self._graphs.clear()
            logger.warning(
                "Decoding steps can't be recorded as CUDA graphs, so they are slower (%s: %s)",
                type(error).__name__,
                one_line(str(error))[:200],
            )
        else:
            self._graphs[size] = graph
