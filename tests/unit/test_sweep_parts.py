"""What a sweep counts beside metrics, what its workers get and keep, and whose failure a launcher names."""

import gc
import signal
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from dlrun import launch, trials
from dlrun.commands._sweep_study import Objective
from dlrun.commands._sweep_workers import devices
from dlrun.data import digits
from dlrun.models import mlp
from dlrun.training import energy, latency
from dlrun.training.precision import Precision

CPU = torch.device("cpu")


def test_every_process_of_a_trial_has_a_gpu_of_its_worker_as_far_as_there_are_so_many():
    assert [devices(index, 1, 3) for index in range(4)] == [[0], [1], [2], [0]]
    assert [devices(index, 2, 4) for index in range(3)] == [[0, 1], [2, 3], [0, 1]]
    assert devices(1, 2, 3) == [0, 2]
    assert devices(0, 4, 2) == [0, 1]  # the run itself then says that a process has none


def test_latency_is_read_in_milliseconds_and_is_unknown_where_it_was_not_measured():
    objective = Objective("latency", "min")
    assert objective.value({"latency_seconds": 0.002, "metrics": {}}) == pytest.approx(2.0)
    assert objective.value({"metrics": {"valid/accuracy": 1.0}}) is None


def test_latency_is_the_middle_time_of_calls_with_one_validation_example(monkeypatch):
    """By a clock that says five calls took 4, 1, 9, 3 and 5 seconds; three before them warm up."""
    seen: list[torch.Tensor] = []
    ticks = [0.0, *[tick for call in (4, 1, 9, 3, 5) for tick in (100.0 * call, 100.0 * call, 101.0 * call)]]
    clock = iter([*ticks, 1e6])
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    dataset = digits.build(SimpleNamespace(seed=0, assets=None))  # type: ignore[arg-type]
    model = mlp.build(dataset.spec)
    model.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    found = latency.latency_seconds(model, dataset, Precision.of("fp32", CPU), CPU)
    assert len(seen) == 8 and all(len(image) == 1 for image in seen) and not model.training
    assert found == 4.0
    expected = dataset.inputs.prepare(dataset.splits["valid"].gather(torch.tensor([0])))["image"]
    torch.testing.assert_close(seen[0], expected)


def test_the_energy_of_a_run_counts_what_its_earlier_sittings_spent(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    assert energy.EnergyMeter(CPU, 2.5).reading()["joules"] is None  # no counter here: nothing is made up
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("1000000")
    first = energy.EnergyMeter(CPU)
    counter.write_text("3500000")
    assert first.joules == 2.5
    second = energy.EnergyMeter(CPU, 2.5)
    counter.write_text("4000000")
    assert second.reading()["joules"] == 3.0


def test_what_a_trial_leaves_is_collected_although_what_the_first_imported_is_not_looked_at_again(monkeypatch):
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    left: list[weakref.ref] = []

    def hear() -> dict:
        assert all(cycle() is None for cycle in left) and bool(gc.get_freeze_count()) == bool(left)
        return {"run": "a folder"} if len(left) < 4 else {}

    monkeypatch.setattr(sys, "argv", ["trials", "--call", "nobody"])
    monkeypatch.setattr(trials, "Line", lambda *_: SimpleNamespace(hear=hear, say=lambda **_: None))
    monkeypatch.setattr(trials, "_train", lambda *_: left.append(weakref.ref(Cycle())))
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trials.main()
    finally:
        signal.signal(signal.SIGINT, interrupt)
        gc.unfreeze()
    assert len(left) == 4


def test_a_rank_that_an_earlier_sitting_lost_is_not_named_again(tmp_path):
    log = tmp_path / "processes.log"
    log.write_text("  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 12)\n")
    before = launch._first_failure(tmp_path, log, 0, 1)
    assert before.message == "rank 1 was ended by SIGKILL"
    after = launch._first_failure(tmp_path, log, log.stat().st_size, 1)
    assert after.message == "the processes ended with code 1 and left no error"
