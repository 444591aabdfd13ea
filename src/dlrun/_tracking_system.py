"""What the machine does while a run runs, sampled from a thread of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any


class SystemSampler:
    """Calls `write` every few seconds with the load of the machine; a sample costs about a millisecond.

    system/cpu_percent: of all cores, 0 to 100, since the sample before.  system/memory_bytes: in use on the
    machine.  system/process_memory_bytes: resident, this process and its children.  For each GPU:
    system/gpu_N_percent, system/gpu_N_memory_bytes, system/gpu_N_watts (those the driver tells).

    write: called from the sampler's thread; an error it raises ends the sampling, not the run.
    gpus: device numbers as torch counts them; none by default.
    """

    def __init__(
        self, write: Callable[[dict[str, float]], None], *, interval_seconds: float = 10.0, gpus: Sequence[int] = ()
    ) -> None:
        self._write = write
        self._interval = interval_seconds
        self._gpus = gpus
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dlrun-system", daemon=True)

    def start(self) -> SystemSampler:
        """Begin sampling; the first sample comes after one interval."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop; no call of `write` begins after this returns."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        import psutil

        handles = _handles(self._gpus)
        psutil.cpu_percent()  # the first call only starts the clock
        with contextlib.suppress(Exception):  # a sample is never worth a run
            while not self._stop.wait(self._interval):
                self._write(sample(handles))


def sample(gpus: dict[int, Any]) -> dict[str, float]:
    """One row of measurements. gpus: NVML handles by device number."""
    import psutil

    values = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_bytes": float(psutil.virtual_memory().used),
        "system/process_memory_bytes": _process_bytes(),
    }
    for number, handle in gpus.items():
        values |= _gpu(number, handle)
    return values


def _process_bytes() -> float:
    import psutil

    me = psutil.Process(os.getpid())
    total = 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # a child may end meanwhile
            total += process.memory_info().rss
    return float(total)


def _handles(numbers: Sequence[int]) -> dict[int, Any]:
    """NVML's handles of the devices that this process sees under these numbers."""
    if not numbers:
        return {}
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    try:
        import pynvml

        pynvml.nvmlInit()
        names = {number: visible[number] if visible else str(number) for number in numbers}
        return {
            number: pynvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(name)
            for number, name in names.items()
        }
    except Exception:  # no driver, no library, no such device: then there is nothing to say of it
        return {}


def _gpu(number: int, handle: Any) -> dict[str, float]:
    import pynvml

    readings: dict[str, Callable[[], Any]] = {
        "percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        "watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    values = {}
    for name, read in readings.items():
        with contextlib.suppress(pynvml.NVMLError):
            values[f"system/gpu_{number}_{name}"] = float(read())
    return values
