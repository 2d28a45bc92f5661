"""Is what a configuration wants to compute on here? Asked before any work, not by `validate`, often run elsewhere."""

from __future__ import annotations

from sparsegate.errors import UsageError, did_you_mean

_ANYWHERE = ("auto", "cpu")


def check_device(device: str, *, field: str) -> None:
    """Check that torch finds the device that models are evaluated on.

    Args:
        device: ``cpu`` or ``cuda``.
        field: Where the device was given, for the error.

    Raises:
        UsageError: If it doesn't.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"{field} is cuda, and this machine or this build of torch has none; use cpu")


def check_accelerator(accelerator: str) -> None:
    """Check that Lightning knows the accelerator (``training.accelerator``) and finds it.

    Raises:
        UsageError: If it doesn't.
    """
    if accelerator in _ANYWHERE:
        return
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = AcceleratorRegistry.available_accelerators()
    names = ("cuda", "mps") if accelerator == "gpu" else (accelerator,)
    if not known.issuperset(names):
        choices = sorted({*_ANYWHERE, "gpu", *known})
        raise UsageError(f"unknown training.accelerator '{accelerator}'{did_you_mean(accelerator, choices)}")
    if not any(AcceleratorRegistry[name]["accelerator"].is_available() for name in names):
        raise UsageError(
            f"training.accelerator is {accelerator}, and this machine or this build of torch has none; use auto or cpu"
        )
