"""Generation with any engine: progress, a store of what is done, and an account of tokens."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from sami_pipeline import code_versions
from sami_pipeline.engines.base import (
    Completion,
    Engine,
    FallibleEngine,
    GenerationRequest,
)
from sami_pipeline.engines.store import CompletionStore, completion_key
from sami_pipeline.models.checkpoints import PROVENANCE_FILE

logger = logging.getLogger(__name__)

# Without the minutes left: the shortest texts are ready first, so that those would be too few.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]"


def generate(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    *,
    seed: int,
    description: str,
    store: CompletionStore | None = None,
) -> list[Completion]:
    """Return one completion per request, in the order of the requests.

    What the store holds is not asked again, unless its policy says so (``StorePolicy``); the rest
    is stored as it comes. Requests that are alike (greedy, or the same sample of the same prompt)
    are asked once.

    Args:
        engine: writes the responses.
        requests: any mixture of prompts and sampling parameters.
        seed: makes sampled responses reproducible, where the engine can.
        description: what the progress bar says.
        store: keeps completions between runs; None keeps none.
    """
    keys = [completion_key(engine.identity, request, seed) for request in requests]
    if store is not None:
        store.code = code_versions.of(engine).digest
    done = store.take(keys, description) if store is not None else {}
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    missing = sorted(index for key, index in first.items() if key not in done)
    reused = len(requests) - len(missing)
    if done:
        logger.info("%s: %d of %d are stored already", description, reused, len(requests))
    written = 0
    options = {"total": len(first)} if isinstance(engine, FallibleEngine) else {}
    with tqdm(
        total=len(requests), initial=reused, desc=description, file=sys.stderr, bar_format=_BAR
    ) as bar:
        for piece in engine.stream([requests[index] for index in missing], seed=seed, **options):
            completions = {keys[missing[index]]: each for index, each in piece.items()}
            if store is not None:
                store.add(completions)
            done |= completions
            written += sum(each.completion_tokens for each in completions.values())
            bar.update(len(piece))
    failed = sum(done[key].finish_reason == "failed" for key in keys)
    if failed:
        logger.warning("%s: %d of %d got no usable answer", description, failed, len(requests))
    logger.info("%s: %d asked, %d tokens written", description, len(missing), written)
    return [done[key] for key in keys]


def model_fingerprint(folder: Path) -> str:
    """Return a hash of the files that determine what a model writes: weights, tokenizer, code."""
    whole = hashlib.sha256()
    names = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
    for path in sorted({path for name in names for path in folder.glob(name)}):
        if path.name == PROVENANCE_FILE:
            continue  # where a model comes from changes nothing that it writes
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {content}\n".encode())
    return whole.hexdigest()
