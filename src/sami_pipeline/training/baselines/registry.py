"""The list of baselines; another one is a file in this folder, and a line here."""

from __future__ import annotations

from sami_pipeline.training.baselines import dpo, sft
from sami_pipeline.training.baselines.record import Baseline

SAMI = "sami"
"""The model that SAMI makes of the student."""

_BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        dpo.DPO,
        sft.SFT,
        Baseline(name="sft_sami", starts_from="sft"),
        dpo.DPO_AFTER_SFT,
    )
}


def register(baseline: Baseline) -> None:
    """Add a baseline from outside this package, before a session begins.

    Raises:
        ValueError: another model has its name, or it goes on with one that is unknown.
    """
    if baseline.name in (*_BASELINES, SAMI):
        raise ValueError(f"a model is called {baseline.name!r} already")
    if baseline.starts_from not in ("", *_BASELINES):
        raise ValueError(f"{baseline.name}: starts_from: {baseline.starts_from!r} is no baseline")
    _BASELINES[baseline.name] = baseline


def baselines() -> dict[str, Baseline]:
    """Return all baselines by name; one that goes on with another comes after it."""
    return dict(_BASELINES)


def trained_models() -> tuple[str, ...]:
    """Return the names of all models that are trained here, SAMI's first."""
    return (SAMI, *_BASELINES)


def sami_models() -> tuple[str, ...]:
    """Return the names of the models that SAMI itself trains: of the student, then the others."""
    return (SAMI, *(name for name, baseline in _BASELINES.items() if baseline.is_sami))
