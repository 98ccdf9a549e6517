"""Where models compute: chosen by a parameter, or by what there is. Loads no torch."""

from __future__ import annotations

from typing import Literal

from sami_pipeline.errors import InputError

Device = Literal["auto", "cpu", "mps", "cuda"]
DESCRIPTION = (
    "Where the model computes: auto takes a CUDA GPU where there is one, else the processor; mps "
    "is Apple's GPU, on which nothing here has been measured."
)


def device_of(wanted: Device, parameter: str = "device") -> str:
    """Return the device that is meant, in torch's words.

    Raises:
        InputError: this machine, or this build of torch, does not have it.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if wanted == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[wanted]:
        known = ", ".join(name for name, is_there in there.items() if is_there)
        raise InputError(
            f"{parameter}: {wanted} is not there, on this machine or for this build of torch; set "
            f"auto or one of {known}"
        )
    return wanted
