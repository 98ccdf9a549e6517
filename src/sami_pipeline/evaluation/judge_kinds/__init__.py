"""Kinds of models that judge. To add one, write its file here and name it in `FILES`."""

from __future__ import annotations

from importlib import import_module

from sami_pipeline.evaluation.judge_kinds.base import JudgeKind

FILES = (
    "pairwise",
    "constitution",
    "single",
    "principle_based",
    "principle_based_form",
    "principle_free",
)
"""The files of this folder that hold a kind, as `KIND`."""

KINDS: list[JudgeKind] = [import_module(f"{__name__}.{file}").KIND for file in FILES]


def judge_kind(name: str) -> JudgeKind:
    """Return the kind of that name; raise KeyError where there is none."""
    return {kind.name: kind for kind in KINDS}[name]


__all__ = ["FILES", "KINDS", "JudgeKind", "judge_kind"]
