"""What compressing changed, measured on this machine in one run: size, work, time, memory, energy, and the goal."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from dlrun.commands._terminal import number
from dlrun.compression import _quantized
from dlrun.contracts import Batch, Outputs, Task
from dlrun.predictor import TrainedModel
from dlrun.training.energy import EnergyMeter
from dlrun.training.latency import forward, timed

_TURNS = 4  # of each model at either measurement
_WATTS_A_CORE = 10.0  # a busy core of a server: about 200 W over 20 cores; said wherever it is used


@dataclass(frozen=True)
class Weighed:
    """parameters, nonzero: of weights as they compute.   macs: multiplications of one example; None if unknown."""

    parameters: int
    nonzero: int
    macs: int | None


def weigh(model: nn.Module, batch: Batch, inputs: tuple[str, ...], known: Weighed | None = None) -> Weighed:
    """Count a model. known: what stands for a graph that hides its weights: the model it was made from."""
    if known is not None and any(hasattr(part, "hides") for part in model.modules()):
        return known
    tensors = list(_weights(model))
    parameters, nonzero = sum(t.numel() for t in tensors), sum(int(t.count_nonzero()) for t in tensors)
    return Weighed(parameters, nonzero, _macs(model, batch, inputs) or (known.macs if known else None))


def _weights(model: nn.Module) -> Iterator[Tensor]:
    """Each weight once, kept in whatever form."""
    hidden = {id(p) for part in model.modules() if isinstance(part, parametrize.ParametrizationList)
              for p in part.parameters()}  # fmt: skip
    yield from (parameter for parameter in model.parameters() if id(parameter) not in hidden)
    for part in model.modules():
        if parametrize.is_parametrized(part):
            yield from (getattr(part, name) for name in part.parametrizations)  # type: ignore[union-attr]
        elif hasattr(part, "weight_int8"):
            int8: Any = part.weight_int8
            yield int8


def _macs(model: nn.Module, batch: Batch, inputs: tuple[str, ...]) -> int | None:
    """Multiply-accumulates of one example: matrix products and convolutions, as torch's counter sees them."""
    one = [batch[name][:1] for name in inputs]
    recurrent = any(isinstance(part, nn.RNNBase) for part in model.modules())  # its fused kernel is not counted
    product = {torch.ops.aten._int_mm: lambda a, b, *_, **__: 2 * a[0] * a[1] * b[1]}
    was_training = model.training
    model.eval()
    try:
        with (
            warnings.catch_warnings(action="ignore"), torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=not recurrent),
            FlopCounterMode(display=False, custom_mapping=product) as counter,
        ):  # fmt: skip
            model(*one)
        return counter.get_total_flops() // 2 or None
    except Exception:  # whatever a model does that the counter cannot follow: nothing is claimed then
        return None
    finally:
        model.train(was_training)


# ---------------------------------------------------------------- time, memory, energy


@dataclass(frozen=True)
class Measured:
    """latency: seconds of one example, median and 95th percentile.   rate: examples a second, in full batches.
    memory_bytes: see `_Clock.weigh_memory`; None where the system does not tell.   joules: of one example."""

    latency: float
    latency_p95: float
    rate: float
    memory_bytes: int | None
    joules: float
    energy_method: str


def measure(predictors: Sequence[TrainedModel], batches: list[Batch]) -> list[Measured]:
    """Time models on full batches that lie on the device, and on single examples of them.

    They take turns, and medians are taken over all of them: a machine that slows down meanwhile favours none.
    """
    clocks = [_Clock(predictor, batches) for predictor in predictors]
    with torch.no_grad():
        for clock in clocks:
            clock.weigh_memory()
        for clock in clocks:
            clock.warm_up()
        for _ in range(_TURNS):
            for clock in clocks:
                clock.time_single()
        for _ in range(_TURNS):
            for clock in clocks:
                clock.time_full()
    return [clock.measured() for clock in clocks]


class _Clock:
    """One predictor's turns, and what they gave."""

    def __init__(self, predictor: TrainedModel, batches: list[Batch]) -> None:
        self.models = [member.model for member in getattr(predictor, "members", [predictor])]
        names = predictor.spec.inputs
        self.device, self.run = predictor.device, forward(self.models, predictor._precision, predictor.device)
        self.full = [[batch[name] for name in names] for batch in batches]
        self.examples = len(self.full[0][0])
        self.single = [[part[index : index + 1] for part in self.full[0]] for index in range(min(16, self.examples))]
        self.times: list[float] = []
        self.rates: list[float] = []
        self.memory: int | None = None
        self.joules, self.seconds, self.method = 0.0, 0.0, ""

    def warm_up(self) -> None:
        """What is compiled, chosen or allocated at first calls is not measured."""
        for inputs in (self.single[0], self.full[0], self.full[0]):
            self.run(inputs)

    def time_single(self) -> None:
        self.times += timed(self.run, self.single, _TURNS)

    def weigh_memory(self) -> None:
        """The tensors that the models hold, and what their first full batch adds at its height: activations, weights
        that are written out, what a runtime makes ready. Later batches find all of that there."""
        before = _held(self.models)
        added = _added(lambda: self.run(self.full[0]), self.device)
        self.memory = None if added is None else max(before + added, _held(self.models))

    def time_full(self) -> None:
        meter, busy, started = EnergyMeter(self.device), time.process_time(), time.perf_counter()
        self.rates += timed(self.run, self.full, _TURNS)
        joules, self.method = _joules(meter, time.process_time() - busy)
        self.joules += joules
        self.seconds += time.perf_counter() - started

    def measured(self) -> Measured:
        """Medians over all turns."""
        share = sum(self.rates) / self.seconds / max(1e-9, len(self.rates) * self.examples)  # warm-up is metered too
        times = sorted(self.times)
        return Measured(
            times[len(times) // 2], times[int(0.95 * (len(times) - 1))],
            self.examples / sorted(self.rates)[len(self.rates) // 2], self.memory,
            self.joules * share, self.method,
        )  # fmt: skip


def _held(models: Sequence[nn.Module]) -> int:
    """Bytes of all tensors of the models' modules, with the copies in float32 of what is kept in fewer bits."""
    parts = [part for model in models for part in model.modules()]
    tensors = [tensor for part in parts for tensor in (*part.parameters(False), *part.buffers(False))]
    tensors += [copy for model in models for copy in _quantized.copies(model)]
    storages = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def _added(run: Callable[[], None], device: torch.device) -> int | None:
    """Bytes that a call needs beyond those in use, at its height: of the device's allocator, or of the process, as
    Linux counts its peak; None where it does not."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        with _seen_to_grow():
            Path("/proc/self/clear_refs").write_text("5")  # 5 resets the peak
            before = _status("VmRSS")
            run()
            return max(0, _status("VmHWM") - before)
    except (OSError, StopIteration):
        return None


@contextlib.contextmanager
def _seen_to_grow() -> Iterator[None]:
    """What was let go of goes back to the system, and each large block comes from it: memory that is used again would
    not be seen to grow. Of the GNU library; of another the peak is what the process happens to take anew."""
    gc.collect()
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    trim, by_itself = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h, in bytes
    library.malloc_trim(0)
    for setting in (trim, by_itself):
        library.mallopt(setting, 1 << 16)
    try:
        yield
    finally:
        library.mallopt(trim, 64 << 20)  # what they grow to by themselves, where large blocks are freed
        library.mallopt(by_itself, 32 << 20)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _joules(meter: EnergyMeter, core_seconds: float) -> tuple[float, str]:
    reading = meter.reading()
    if isinstance(reading["joules"], float):
        return reading["joules"], str(reading["method"])
    return core_seconds * _WATTS_A_CORE, f"estimated: {_WATTS_A_CORE:.0f} W a busy core"


# ---------------------------------------------------------------- before and after


def side(
    predictor: TrainedModel,
    weighed: Weighed,
    measured: Measured | None,
    metrics: Mapping[str, float],
    files: list[Path],
) -> dict[str, Any]:
    """One column of the table, by the names of --json."""
    found = {
        "bytes": sum(path.stat().st_size for path in files),
        "parameters": weighed.parameters, "nonzero": weighed.nonzero, "macs": weighed.macs,
        "metrics": dict(metrics),
    }  # fmt: skip
    if measured is None:
        return found | {"latency_seconds": None}
    return found | {
        "latency_seconds": measured.latency, "latency_p95_seconds": measured.latency_p95,
        "samples_per_second": measured.rate, "peak_memory_bytes": measured.memory_bytes,
        "joules_per_sample": measured.joules, "energy_method": measured.energy_method,
        "threads": torch.get_num_threads(), "device": str(predictor.device),
    }  # fmt: skip


def ratios(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float | None]:
    """How many times smaller, or faster: above 1 is better."""
    smaller = ("bytes", "parameters", "nonzero", "macs", "latency_seconds", "peak_memory_bytes", "joules_per_sample")
    found = {name: _ratio(before.get(name), after.get(name)) for name in smaller}
    return found | {"samples_per_second": _ratio(after.get("samples_per_second"), before.get("samples_per_second"))}


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _times(ratio: float | None) -> str:
    """In words which way is better."""
    if not ratio:
        return ""
    return f"{ratio:.2f} x better" if ratio >= 1.005 else f"{1 / ratio:.2f} x worse" if ratio <= 0.995 else "same"


def compared(before: Mapping[str, Any], after: Mapping[str, Any], changed: Mapping[str, Any]) -> list[list[str]]:
    """For a person: what it is, before, after, and the change in words."""
    rows = []
    for name, title, unit in _ROWS:
        if before.get(name) is not None or after.get(name) is not None:
            each = [_said(side.get(name), unit) for side in (before, after)]
            ratio = changed.get(name)
            rows.append([title, *each, _times(ratio)])
    for name in after["metrics"]:
        was, now = before["metrics"].get(name), after["metrics"][name]
        rows.append(
            [name, number(was) if was is not None else "", number(now), f"{now - was:+.4f}" if was is not None else ""]
        )
    return rows


_ROWS = (
    ("bytes", "bytes of the file", 1), ("parameters", "parameters", 1), ("nonzero", "not zero", 1),
    ("macs", "multiply-adds", 1), ("latency_seconds", "latency p50, ms", 1e3),
    ("latency_p95_seconds", "latency p95, ms", 1e3), ("samples_per_second", "examples a second", 1),
    ("peak_memory_bytes", "peak memory, bytes", 1), ("joules_per_sample", "energy, mJ an example", 1e3),
)  # fmt: skip


def _said(value: float | None, unit: float) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if unit == 1 else f"{value * unit:.3f}"


def remarks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What the numbers do not say by themselves."""
    found = []
    zeros = 1 - after["nonzero"] / max(1, after["parameters"])
    if zeros > 0.1:
        found.append(
            f"{zeros:.0%} of the weights are zero: that saves no time here, for they are multiplied all the same"
        )
    if after.get("goal_interval", ()) is None:
        found.append("the goal has no bootstrap interval: boxes are not resampled")
    if after.get("peak_memory_bytes", 0) is None:
        found.append("peak memory is unknown: this system does not tell it")
    if str(after.get("energy_method", "")).startswith("estimated"):
        found.append(f"energy is {after['energy_method']}")
    return found


def interval(task: Task, outputs: Outputs, resamples: int = 1000, seed: int = 0) -> list[float] | None:
    """The goal's 95 % interval: percentiles of a bootstrap over examples; None of boxes. Of a goal that is no mean
    over examples a tenth of the resamples are drawn."""
    from dlrun.commands._ensemble_scores import by_row, goal_value

    if "boxes" in outputs.fields:
        return None
    generator, size = torch.Generator().manual_seed(seed), len(outputs.ids)
    rows_N = by_row(task, outputs)
    drawn = []
    for _ in range(resamples if rows_N is not None else max(10, resamples // 10)):
        chosen_N = torch.randint(size, (size,), generator=generator)
        if rows_N is not None:
            drawn.append(float(rows_N[chosen_N].mean()))
        else:
            fields = {name: field[chosen_N] for name, field in outputs.fields.items()}
            drawn.append(goal_value(task, Outputs(outputs.ids[chosen_N], fields)))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return torch.quantile(torch.tensor(drawn, dtype=torch.float64), ends).tolist()
