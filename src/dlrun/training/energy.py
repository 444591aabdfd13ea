"""Energy of a run, from the counters the hardware offers; where there is none, that is what is said."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made: NVIDIA's total-energy counter and Intel/AMD RAPL where readable.

    before: joules that earlier sittings of the same run spent.
    """

    def __init__(self, device: torch.device, before: float = 0.0) -> None:
        self.device, self._before = device, before
        self._start = self._read()

    def _read(self) -> dict[str, float]:
        readings: dict[str, float] = {}
        for path in sorted(_RAPL.glob("intel-rapl:?/energy_uj")):
            with contextlib.suppress(OSError, ValueError):
                readings[f"rapl {path.parent.name}"] = int(path.read_text()) / 1e6
        if self.device.type == "cuda":
            with contextlib.suppress(Exception):  # the driver may not offer the counter
                import pynvml

                pynvml.nvmlInit()
                handle = pynvml.nvmlDeviceGetHandleByIndex(self.device.index or 0)
                readings["nvml"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        return readings

    def reading(self) -> dict[str, float | str | None]:
        """{"joules": …, "method": …}; joules is None where no counter can be read (most virtual machines)."""
        now = self._read()
        spent = [now[name] - start for name, start in self._start.items() if now.get(name, -1) >= start]
        method = "measured: " + ", ".join(self._start) if spent else "unavailable: no readable energy counter"
        return {"joules": self._before + sum(spent) if spent else None, "method": method}

    @property
    def joules(self) -> float:
        """With those of earlier sittings; 0 where nothing can be read."""
        return float(self.reading()["joules"] or 0.0)
