"""What energy did training take? Read from the counters of processor packages and GPUs, where the machine has them.

Zeus (the extra ``energy``) reads RAPL and NVML. A counter counts all that its package or board does, so whatever else
runs there is included. A virtual machine mostly shows none; then nothing is estimated.
"""

from __future__ import annotations

from typing import Any

import torch

_WINDOW = "training"


class EnergyMeter:
    """Sums the energy of the phases between ``start`` and ``stop``.

    Args:
        device: Where training runs; GPUs are counted if it is one of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._monitor = _monitor(device)
        self._joules = 0.0

    @property
    def joules(self) -> float | None:
        """Energy so far; None where nothing can be read."""
        return None if self._monitor is None else self._joules

    def start(self) -> None:
        """Begin a phase."""
        if self._monitor is not None:
            self._monitor.begin_window(_WINDOW)

    def stop(self) -> None:
        """End a phase."""
        if self._monitor is not None:
            found = self._monitor.end_window(_WINDOW)
            parts = (found.gpu_energy, found.cpu_energy, found.dram_energy)
            self._joules += sum(sum(part.values()) for part in parts if part)


def _monitor(device: torch.device) -> Any:
    """Return Zeus' monitor of what training runs on; None without Zeus, or where no counter can be read."""
    try:
        from zeus.device.cpu.rapl import rapl_is_available

        if device.type == "cpu" and not rapl_is_available():
            return None  # the monitor brings pandas and scikit-learn along, which would count as memory of training
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None
    gpus = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    monitor = ZeusMonitor(gpu_indices=gpus)
    return monitor if monitor.gpu_indices or monitor.cpu_indices else None
