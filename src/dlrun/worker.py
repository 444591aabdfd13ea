"""One process of a run: reads the run folder, builds, trains, writes. torchrun starts it with `-m dlrun.worker`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dlrun import build, runs
from dlrun.assembly import assemble, report_transfer
from dlrun.config import check, convert
from dlrun.config.schema import RunConfig
from dlrun.contracts import Task, unit_of_rate
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry
from dlrun.training import checkpoint
from dlrun.training.diagnose import Diagnosis
from dlrun.training.distributed import World, choose_device, joined, limit_threads
from dlrun.training.energy import EnergyMeter
from dlrun.training.evaluate import batches, evaluate, thorough, write_tables
from dlrun.training.guards import caught_signals, deterministic, memory_errors
from dlrun.training.latency import latency_seconds
from dlrun.training.loop import Ended, Engine, NotFinite, Plan, Reporter, evaluate_and_judge, fit
from dlrun.training.metrics_log import MetricsLog
from dlrun.training.state import seed_generators
from dlrun.training.validation_pictures import ValidationPictures

Stop = Callable[[int, dict[str, float]], bool]  # (step, values of an evaluation) -> whether to end
Sampler = Callable[[Callable[[dict[str, float]], None]], contextlib.AbstractContextManager]


def train(
    folder: Path,
    registry: Registry,
    reporter: Reporter,
    sample_system: Sampler | None = None,
    *,
    config: RunConfig | None = None,
    datasets: build.Datasets | None = None,
    stop: Stop | None = None,
) -> Ended:
    """Train the run of this folder from its newest checkpoint (or from the start) to its end, and write the result.

    sample_system: given a function that writes values, a context in which system metrics are sampled.
    config: the folder's, where it was read already.   datasets: of a process that trains several runs.
    stop: asked after every evaluation whether to end here.
    Raises: DlrunError, with everything that was reached saved.
    """
    config = config or check.read(folder, registry)
    with joined(config.hardware.timeout_seconds) as place:
        device = choose_device(config.hardware.device, place.local_rank)
        world = World(place.rank, place.size, device)
        limit_threads(config.hardware.threads, place.local_size)
        limits = (config.data.batch_size, config.train.accumulate)
        with deterministic(config.train.deterministic), memory_errors(device, *limits):
            sitting = Sitting(runs.load(folder), config, registry, world, reporter, datasets)
            if stop is not None:
                sitting.engine.after_evaluate.append(stop)
            return sitting.run_to_end(sample_system)


class Sitting:
    """One sitting of a run: from its newest checkpoint until it ends or is interrupted."""

    def __init__(
        self,
        run: runs.Run,
        config: RunConfig,
        registry: Registry,
        world: World,
        reporter: Reporter,
        datasets: build.Datasets | None = None,
    ) -> None:
        self.run, self.config, self.registry, self.world, self.reporter = run, config, registry, world, reporter
        self.parts = assemble(config, registry, world, run.folder.parents[1], self._found(), datasets)
        for note in self.parts.dataset.notes:
            reporter.note(note)
        if world.is_main:
            self.parts.dataset.spec.save(run.folder)
        state = self.parts.state
        if self._found() is not None:
            state.restore(self._found())
            reporter.note(f"resumed at step {state.progress.step}")
        elif config.transfer.name != "none":
            report_transfer(self.parts.transferred, reporter)
        state.progress.loss_sum = state.progress.loss_sum.to(world.device)
        self.log = MetricsLog(run.metrics_file, state.progress.step) if world.is_main else None
        self.energy = EnergyMeter(world.device, state.progress.joules)
        self.engine = self._engine()
        if self._found() is None:
            seed_generators(config.seed, world.rank)

    def _found(self) -> Path | None:
        if not hasattr(self, "_checkpoint"):
            self._checkpoint, warnings = checkpoint.newest_valid(self.run.checkpoints)
            for line in warnings:
                self.reporter.note(f"warning: {line}; going back to the one before it")
        return self._checkpoint

    def _engine(self) -> Engine:
        parts, config = self.parts, self.config
        engine = Engine(
            model=parts.forward, task=parts.task, state=parts.state, feed=parts.feed, plan=parts.plan,
            schedule=parts.schedule, precision=parts.state.precision, log=self.log, reporter=self.reporter,
            evaluate=lambda: self.evaluate("valid"), save=self.save, lr_scales=parts.lr_scales,
        )  # fmt: skip
        if config.train.diagnose:
            self.diagnosis = Diagnosis(parts.trained, every=config.train.log_every)
            engine.after_step.append(self.diagnosis.after_step)
        self.pictures = ValidationPictures(
            self.run.folder / "figures", parts.dataset, parts.full_task, parts.state, parts.feed.place,
            config.train.pictures if self.world.is_main else 0, self.reporter.note,
        )  # fmt: skip
        engine.after_evaluate.append(self.pictures.after_evaluate)
        return engine

    def evaluate(self, split: str, tables: dict[str, list] | None = None, task: Task | None = None) -> dict[str, float]:
        """Metrics of a split with the weights one would use now; {} if the data has no such split.

        task: the whole model's unless another one's metrics are wanted.
        """
        data, state = self.parts.dataset, self.parts.state
        task = task or self.parts.full_task
        if split not in data.splits or len(data.splits[split]) == 0:
            return {}
        stream = batches(
            data.splits[split],
            data.inputs,
            batch_size=2 * self.config.data.batch_size,
            place=self.parts.feed.place,
            rank=self.world.rank,
            size=self.world.size,
        )
        values = evaluate(state.weights, task, stream, state.precision, self.world, tables)
        return {f"{split}/{name}": value for name, value in values.items()}

    def save(self, best: bool) -> None:
        """A checkpoint of now. A full disk is a warning while training goes on, an error at the end."""
        progress = self.parts.state.progress
        progress.joules = self.energy.joules
        contents, step = self.parts.state.contents(), progress.step
        self.engine.last_saved = step
        if not self.world.is_main:
            return
        assert self.log is not None
        self.log.sync()
        try:
            checkpoint.save(self.run.checkpoints, step, contents)
            if best:
                checkpoint.point(self.run.checkpoints, "best", step)
            checkpoint.prune(self.run.checkpoints, self.config.train.keep)
            self._save_failed = False
        except DlrunError as error:
            self.engine.last_saved = -1
            if self._ending:
                raise
            if not self._save_failed:  # said once, not at each try on a disk that stays full
                self.reporter.note(f"warning: {error.message}; training goes on with the checkpoint before it")
            self._save_failed = True

    _ending = False
    _save_failed = False

    def run_to_end(self, sample_system: Sampler | None) -> Ended:
        """Fit, then save, evaluate and write the result."""
        with contextlib.closing(self.log) if self.log is not None else contextlib.nullcontext():
            return self._run_to_end(sample_system)

    def _run_to_end(self, sample_system: Sampler | None) -> Ended:
        engine, progress = self.engine, self.parts.state.progress
        sampling = contextlib.nullcontext()
        if sample_system is not None and self.log is not None:
            log = self.log
            sampling = sample_system(lambda values: log.write(progress.step, values))
        self.reporter.begin(self.parts.plan, progress.step)
        try:
            with caught_signals(engine.signals), sampling:
                ended = fit(engine)
                self._ending = True
                if engine.last_saved != progress.step:
                    self._last_words(ended)
        except NotFinite as error:
            runs.write_json(
                self.run.folder / f"not-finite-step-{error.step}-rank-{self.world.rank}.json",
                {"step": error.step, "ids": error.ids},
            )
            raise
        finally:
            self.reporter.end()
        if ended in ("complete", "early stop"):
            self._finish(self.energy.reading())
        return ended

    def _last_words(self, ended: Ended) -> None:
        """A last checkpoint; after a run limited by time, a last evaluation before it."""
        if ended == "complete" and self.parts.plan.total is None:
            evaluate_and_judge(self.engine)
        if self.engine.last_saved != self.parts.state.progress.step:
            self.save(False)

    def _finish(self, energy: dict[str, Any]) -> None:
        """Evaluate the best weights on every held-out split and write result.json, last of all."""
        self.world.wait_for_all()
        state, goal = self.parts.state, self.parts.task.goal
        step = self._load_best()
        if not self.pictures.path(step).exists():
            self.pictures.draw(step)
        tables: dict[str, list] = {}
        task = thorough(self.parts.full_task)
        metrics = {**self.evaluate("valid", tables, task), **self.evaluate("test", tables, task)}
        if self.config.train.diagnose and self.world.is_main:
            (self.run.folder / "report").mkdir(exist_ok=True)
            runs.write_json(self.run.folder / "report" / "gradients.json", self._diagnosed())
        if not self.world.is_main:
            return
        split = next((name for name in ("test", "valid") if f"{name}/{goal.metric}" in metrics), None)
        value = metrics.get(f"{split}/{goal.metric}") if split else None
        assert self.log is not None
        if test := {name: number for name, number in metrics.items() if name.startswith("test/")}:
            self.log.write(state.progress.step, test)
        write_tables(self.run.folder, tables, self.parts.dataset.spec.labels)
        runs.write_json(self.run.folder / "result.json", {
            "goal": {"name": goal.metric, "mode": goal.mode, "value": value, "split": split}, "metrics": metrics,
            "step": state.progress.step, "best_step": step, "seconds": state.progress.seconds,
            "rate": {f"{unit_of_rate(self.parts.task)}_per_second": self.engine.meter.rate},
            "parameters": sum(p.numel() for p in state.model.parameters()), "energy": energy,
        } | self._latency() | {name: tables[name] for name in ("signatures",) if name in tables})  # fmt: skip

    def _latency(self) -> dict[str, float]:
        """What one example takes the best weights, where a sweep wants to know (it says so in trial.json)."""
        trial, state = self.run.folder / "trial.json", self.parts.state
        if not trial.exists() or not runs.read_json(trial).get("latency"):
            return {}
        data, device = self.parts.dataset, self.world.device
        return {"latency_seconds": latency_seconds(state.weights, data, state.precision, device)}

    def _diagnosed(self) -> dict[str, Any]:
        """The diagnosis, its cure limited to overrides that this run's config knows and does not have yet."""
        report = self.diagnosis.report()
        plain = convert.to_plain(self.config)

        def new(override: str) -> bool:
            name, _, value = override.partition("=")
            group, _, setting = name.partition(".")
            now = plain[group].get(setting, "unknown")
            return now != "unknown" and str(now).lower() != value and not (group == "optimizer" and float(now) <= 1e-4)

        return report | {"cure": [override for override in report["cure"] if new(override)]}

    def _load_best(self) -> int:
        """The best checkpoint's weights into the model (the run is over: nothing is trained after this)."""
        state = self.parts.state
        found, _ = checkpoint.newest_valid(self.run.checkpoints, first="best")
        if found is None:
            return state.progress.step
        checkpoint.load_model(state.weights, checkpoint.read_tensors(found, "weights"), str(found))
        return int(found.name)


# ---------------------------------------------------------------- under torchrun


class FileReporter:
    """Tells the launcher, through a file of JSON lines; the parent shows it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - open for the life of the process

    def _write(self, **event: Any) -> None:
        self._file.write(json.dumps(event) + "\n")

    def begin(self, plan: Plan, step: int) -> None:
        self._write(event="begin", total=plan.total, seconds=plan.seconds, step=step)

    def step(self, step: int, values: dict[str, float] | None, fraction: float) -> None:
        if values is not None:
            self._write(event="step", step=step, values=values, fraction=fraction)

    def evaluated(self, step: int, values: dict[str, float], best: bool) -> None:
        self._write(event="evaluated", step=step, values=values, best=best)

    def note(self, text: str) -> None:
        self._write(event="note", text=text)

    def end(self) -> None:
        self._write(event="end")


class Silent:
    """A reporter for ranks that have nothing to say, and for programs."""

    def begin(self, plan: Plan, step: int) -> None: ...

    def step(self, step: int, values: dict[str, float] | None, fraction: float) -> None: ...

    def evaluated(self, step: int, values: dict[str, float], best: bool) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


def write_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Leave a rank's own error where the launcher finds it."""
    known = error if isinstance(error, DlrunError) else None
    (folder / "errors").mkdir(exist_ok=True)
    runs.write_json(folder / "errors" / f"rank-{rank}.json", {
        "rank": rank, "pid": os.getpid(), "time": time.time(), "code": int(known.code if known else Exit.TRAINING),
        "message": known.message if known else f"{type(error).__name__}: {error}", "hint": known.hint if known else "",
        "traceback": "" if known else "".join(traceback.format_exception(error)),
    })  # fmt: skip


def main() -> None:
    """The process torchrun starts."""
    parser = argparse.ArgumentParser(prog="python -m dlrun.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--components", type=Path)
    parser.add_argument(
        "--held", action="store_true", help="end when standard input does: its other end is the launcher"
    )
    arguments = parser.parse_args()
    if arguments.held:
        threading.Thread(target=_end_with_launcher, daemon=True, name="dlrun-launcher").start()
    rank = int(os.environ.get("RANK", "0"))
    reporter: Reporter = FileReporter(arguments.folder / "progress.jsonl") if rank == 0 else Silent()
    try:
        ended = train(
            arguments.folder,
            Registry(arguments.components),
            reporter,
            _system_sampler(arguments.folder, rank),
            stop=_verdict_of(arguments.folder) if rank == 0 else None,
        )
    except BaseException as error:
        write_failure(arguments.folder, rank, error)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(int(error.code) if isinstance(error, DlrunError) else Exit.TRAINING)
    if rank == 0:
        runs.write_json(arguments.folder / "ended.json", {"ended": ended})


def _end_with_launcher() -> None:
    """A launcher that was killed tells nobody; its end of the pipe is closed all the same."""
    while os.read(0, 1):
        pass
    os._exit(int(Exit.TERMINATED))


def _verdict_of(folder: Path) -> Stop | None:
    """Where a sweep decides (it made the folder `verdicts`): waits for what it says of an evaluation."""
    verdicts = folder / "verdicts"
    if not verdicts.is_dir():
        return None

    def verdict(step: int, _values: dict[str, float]) -> bool:
        path = verdicts / f"{step}.json"
        while not path.exists():  # the launcher answers at once, and if it is gone so are we
            time.sleep(0.01)
        return bool(runs.read_json(path)["prune"])

    return verdict


def _system_sampler(folder: Path, rank: int) -> Sampler | None:
    if rank != 0 or not check.read_plain(folder)["tracking"]["system_metrics"]:
        return None
    from dlrun.tracking import SystemSampler

    return sampling(SystemSampler)


def sampling(make: Any) -> Sampler:
    """A context in which the system is sampled, of tracking.SystemSampler."""

    @contextlib.contextmanager
    def sampled(write: Callable[[dict[str, float]], None]) -> Iterator[None]:
        sampler = make(write, gpus=range(torch.cuda.device_count())).start()
        try:
            yield
        finally:
            sampler.close()

    return sampled


if __name__ == "__main__":
    main()
