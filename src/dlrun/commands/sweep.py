"""`dlrun sweep`: many runs under one parent, chosen one after another, stopped early where that is wise."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _sweep_plan as plans
from dlrun.commands._sweep_plan import Plan
from dlrun.commands._sweep_view import View
from dlrun.commands._sweep_workers import Worker, Workers
from dlrun.commands._terminal import print_json, result_console, table
from dlrun.config.space import overrides
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    import optuna

    from dlrun.commands._sweep_study import Study
    from dlrun.commands.train import Options

_MOST_RESTARTS = 2  # of one trial, where its worker died
_STUDY = "study.jsonl"


def sweep(given: Sequence[str], options: Options, *, workers: int) -> int:
    """Make a sweep and run it to its end. Returns the exit code."""
    plan, config = plans.planned(given, options)
    making.send_what_is_left(options.runs)
    view = View(plan)
    parent = making.new_run(
        config, options.registry, options.runs, verb="sweep", require_tracking=options.require_tracking, reporter=view
    )
    plan.write(parent.folder)
    return _run(parent, plan, options, workers, view)


def resume(reference: str, options: Options, *, workers: int) -> int:
    """Go on with a sweep: finished trials stay, interrupted ones go on from their checkpoints."""
    parent = runs.find(options.runs, reference)
    if parent.record.verb != "sweep":
        hint = f"dlrun train --resume {parent.short_id}" if parent.record.verb in ("train", "seeds") else "dlrun runs"
        raise DlrunError(f"run {parent.short_id} is a {parent.record.verb}, no sweep", hint)
    plan = Plan.read(parent.folder)
    if parent.status == "FINISHED":
        View(plan).note(f"sweep {parent.short_id} is finished; nothing is left to do")
        show(parent, options)
        return int(Exit.OK)
    return _run(parent, plan, options, workers, View(plan))


def _run(parent: runs.Run, plan: Plan, options: Options, workers: int, view: View) -> int:
    view.note(f"sweep {parent.short_id}: {plan.search.trials} trials by {plan.search.name}, {workers} at a time")
    with runs.hold(parent.folder):
        parent = parent.update(status="RUNNING", reason="", ended=None)
        try:
            with _stopping_signals():
                sitting = Sitting(parent, plan, options, workers, view)
                sitting.run()
        except _Stopped as stop:
            making.finish(runs.load(parent.folder), "KILLED", stop.name)
            view.note(f"stopped by {stop.name}; go on with: dlrun sweep --resume {parent.short_id}")
            return int(Exit.INTERRUPTED if stop.name == "SIGINT" else Exit.TERMINATED)
        except BaseException as error:
            message = error.message if isinstance(error, DlrunError) else f"{type(error).__name__}: {error}"
            making.finish(runs.load(parent.folder), "FAILED", message.splitlines()[0])
            raise
        parent = making.finish(runs.load(parent.folder), "FINISHED", "complete")
    show(parent, options)
    return int(Exit.OK)


# ---------------------------------------------------------------- one sitting


@dataclass(eq=False)
class Job:
    """A trial that is being trained."""

    trial: optuna.Trial
    child: runs.Run
    text: str  # its overrides
    mirror: Any
    restarts: int = 0


class Sitting:
    """One sitting of a sweep: from where its study is until its trials are done."""

    def __init__(self, parent: runs.Run, plan: Plan, options: Options, workers: int, view: View) -> None:
        self.parent, self.plan, self.options, self.view = parent, plan, options, view
        log, gpus = parent.folder / "workers.log", len(making.hardware()["gpus"])
        self.workers = Workers(workers, options.registry, log, gpus)
        try:
            self.study = self._study()
            self.waiting = self._interrupted()
        except BaseException:
            self.workers.close()
            raise

    def run(self) -> None:
        """Until every trial has ended. Raises: DlrunError if none succeeded, or too many failed."""
        try:
            with self.view.shown(self.study):
                while self._give_work() or self._busy():
                    self._hear()
                    self.view.update([worker for worker in self.workers.all if worker.job])
        finally:
            self.workers.close()
            for worker in self.workers.all:
                if worker.job is not None:
                    self._let_go(worker)
        self._finish()

    # ------------------------------------------------ before

    def _study(self) -> Study:
        from dlrun.commands._sweep_study import Study, objectives

        chased = objectives(self.plan.search.objectives or [self._goal()])
        storage = self.plan.search.storage or self.parent.folder / _STUDY
        return Study(self.parent.id, storage, self.plan.search, self.plan.space, chased, self.options.registry)

    def _goal(self) -> str:
        """What the task chases, asked of the first worker (which then has the data)."""
        stored = self.parent.folder / "goal.json"
        if not stored.exists():
            first = self.workers.all[0]
            first.send(look=str(self.parent.folder))
            while True:
                _, event = self.workers.heard.get()
                if event is None:
                    raise DlrunError(f"a worker of the sweep died: see {self.parent.folder / 'workers.log'}")
                if event["event"] == "failed":
                    raise DlrunError(event["message"], event["hint"], Exit(event["code"]))
                if event["event"] == "goal":
                    runs.write_json(stored, {"goal": f"{event['name']}:{event['mode']}"})
                    break
        return runs.read_json(stored)["goal"]

    def _interrupted(self) -> list[tuple[optuna.Trial, runs.Run]]:
        """Trials that an earlier sitting left running, to go on with; those that had ended are told so."""
        left = []
        by_number = {child.folder: child for child in self._children()}
        numbers = {
            runs.read_json(folder / "trial.json")["number"]: child
            for folder, child in by_number.items()
            if (folder / "trial.json").exists()
        }
        for frozen in self.study.trials:
            if frozen.state.is_finished():
                continue
            child = numbers.get(frozen.number)
            if child is None:
                if self.plan.search.storage is None:  # else it may be another machine's
                    self.study.lose(frozen)
                continue
            trial = self.study.again(frozen)
            if child.result and child.status != "RUNNING":
                self._tell(trial, making.finish(child, "FINISHED", child.record.reason or "complete"))
            else:
                left.append((trial, child))
        return left

    def _children(self) -> list[runs.Run]:
        return [run for run in runs.listing(self.options.runs) if self.parent.id in run.record.parents]

    # ------------------------------------------------ giving work

    def _busy(self) -> bool:
        return any(worker.job is not None for worker in self.workers.all)

    def _give_work(self) -> bool:
        """Give every free worker a trial; False if there was nothing to give."""
        given = False
        for worker in self.workers.all:
            while worker.job is None and (self.waiting or len(self.study.trials) < self.study.budget):
                given |= self._begin(worker)
        return given

    def _begin(self, worker: Worker) -> bool:
        if self.waiting:
            trial, child = self.waiting.pop(0)
            making.note_resume(child, {})
            self._start(worker, trial, child, runs.read_json(child.folder / "trial.json")["overrides"])
            return True
        trial, values = self.study.ask()
        chosen = overrides(self.plan.space, values)
        try:
            config = plans.config_of([*self.plan.fixed, *chosen], self.plan, self.options, f"trial {trial.number}")
        except DlrunError as error:
            self.view.note(f"trial {trial.number}  {' '.join(chosen)}  failed: {error.message.splitlines()[0]}")
            self.study.told(trial, None, error.message.splitlines()[0], pruned=False)
            self._stop_if_hopeless()
            return False
        child = making.new_run(
            config, self.options.registry, self.options.runs, verb="train", nested_under=self.parent.id,
            reporter=self.view, tags={"dlrun.trial": str(trial.number)},
        )  # fmt: skip
        runs.write_json(child.folder / "trial.json", {"number": trial.number, "overrides": chosen})
        self.study.bind(trial, child.id)
        self.parent = self.parent.update(children=(*self.parent.record.children, child.id))
        self._start(worker, trial, child, chosen)
        return True

    def _start(self, worker: Worker, trial: optuna.Trial, child: runs.Run, chosen: Sequence[str]) -> None:
        from dlrun import tracking

        child = child.update(status="RUNNING", reason="", ended=None)
        tracking.set_running(child.folder)
        mirror = tracking.Mirror(child.folder, report=self.view.note)
        mirror.start()
        worker.job, worker.latest = Job(trial, child, " ".join(chosen), mirror), {}
        worker.send(run=str(child.folder))

    # ------------------------------------------------ hearing

    def _hear(self) -> None:
        import queue

        try:
            worker, event = self.workers.heard.get(timeout=1.0)
        except queue.Empty:
            return
        if worker is not self.workers.all[worker.index]:
            return  # a word of one that was replaced
        if event is None:
            self._died(worker)
        elif event["event"] in ("step", "evaluated"):
            worker.latest |= event
            if event["event"] == "evaluated":
                worker.send(prune=self.study.prune(worker.job.trial, event["step"], event["values"]))
        elif event["event"] == "ended":
            self._ended(worker, event["ended"])
        elif event["event"] == "failed":
            self._failed(worker, event["message"].splitlines()[-1])

    def _died(self, worker: Worker) -> None:
        """Go on with its trial in a new process; a trial that kills its workers fails."""
        job, code = worker.job, worker.process.wait()
        fresh = self.workers.replace(worker)
        if job is None:
            return
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        if job.restarts >= _MOST_RESTARTS:
            fresh.job = job
            self._failed(fresh, f"its process ended by {how}, {job.restarts + 1} times")
            return
        self.view.note(f"trial {job.trial.number}: its process ended by {how}; it goes on from its checkpoint")
        job.mirror.close(timeout_seconds=10)
        making.note_resume(job.child, {})
        self._start(fresh, job.trial, job.child, job.text.split())
        fresh.job.restarts = job.restarts + 1

    def _ended(self, worker: Worker, how: str) -> None:
        job: Job = worker.job
        job.mirror.close(timeout_seconds=10)
        worker.job = None
        if how in ("SIGINT", "SIGTERM"):
            making.finish(job.child, "KILLED", how)
            return
        reason = f"pruned at step {worker.latest.get('step')}" if how == "pruned" else how
        self._tell(job.trial, making.finish(runs.load(job.child.folder), "FINISHED", reason))

    def _tell(self, trial: optuna.Trial, child: runs.Run) -> None:
        self.study.told(trial, child.result, child.record.reason, pruned=(child.folder / "pruned.json").exists())
        self.view.ended(self.study, trial.number, child)
        self._keep_the_best()

    def _failed(self, worker: Worker, reason: str) -> None:
        job: Job = worker.job
        job.mirror.close(timeout_seconds=10)
        worker.job = None
        making.finish(runs.load(job.child.folder), "FAILED", reason)
        self.study.told(job.trial, None, reason, pruned=False)
        self.view.note(f"trial {job.trial.number}  {job.text}  failed: {reason}")
        self._stop_if_hopeless()

    def _stop_if_hopeless(self) -> None:
        failed, most = self.study.failed(), self.plan.search.max_failures
        if most is not None and len(failed) >= most:
            last = failed[-1].user_attrs["reason"]
            raise DlrunError(
                f"{len(failed)} trials failed (search.max_failures={most}); the last: {last}",
                f"more are tried with search.max_failures=null; go on: dlrun sweep --resume {self.parent.short_id}",
                Exit.TRAINING,
            )

    def _let_go(self, worker: Worker) -> None:
        """A trial that was stopped with the sweep: it goes on when the sweep does."""
        worker.job.mirror.close(timeout_seconds=2)
        child = runs.load(worker.job.child.folder)
        if not child.result:
            making.finish(child, "KILLED", "the sweep was stopped")

    # ------------------------------------------------ weights and results

    def _keep_the_best(self) -> None:
        """Only the best trials' weights stay on the disk."""
        ended = [trial for trial in self.study.trials if trial.state.is_finished()]
        kept = {trial.number for trial in self.study.ranked()[: self.plan.search.keep]}
        for trial in ended:
            run_id = trial.user_attrs.get("run")
            folder = self.options.runs / str(run_id) / "artifacts"
            if trial.number not in kept and run_id and (folder / "checkpoints").is_dir():
                runs.write_json(folder / "removed.json", {"by": self.parent.id, "keep": self.plan.search.keep})
                shutil.rmtree(folder / "checkpoints")

    def _finish(self) -> None:
        from dlrun import serving

        ranked = self.study.ranked()
        if not ranked:
            failed = self.study.failed()
            reason = failed[0].user_attrs.get("reason", "") if failed else "all were pruned"
            raise DlrunError(f"no trial succeeded; the first: {reason}", "see: dlrun runs", Exit.TRAINING)
        for trial in ranked[: self.plan.search.keep]:
            child = runs.load(self.options.runs / trial.user_attrs["run"] / "artifacts")
            serving.write_mlmodel(child.folder, run_id=child.id)
        best = runs.load(self.options.runs / ranked[0].user_attrs["run"] / "artifacts")
        result = dict(best.result or {})
        chased = self.study.chased[0]
        (self.parent.folder / "best.yaml").write_text(plans.experiment_of(best, self.plan, self.options))
        runs.write_json(self.parent.folder / "result.json", {
            **{name: result[name] for name in ("metrics", "rate", "step") if name in result},
            "goal": {"name": chased.name, "mode": chased.mode, "value": ranked[0].values[0], "split": "valid"},
            "seconds": time.time() - self.parent.record.created, "trials": trial_rows(self.study),
            "best": {"number": ranked[0].number, "run": best.id, "overrides": plans.overrides_of(best)},
        })  # fmt: skip


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """One plain mapping a trial, in order of their numbers."""
    return [
        {
            "number": trial.number,
            "run": trial.user_attrs.get("run"),
            "state": trial.state.name.lower(),
            "values": list(trial.values)
            if trial.values
            else [trial.user_attrs["value"]]
            if "value" in trial.user_attrs
            else [],
            "settings": dict(trial.params),
            "reason": trial.user_attrs.get("reason", ""),
        }
        for trial in study.trials
    ]


def top(parent: runs.Run, folder: Path, count: int) -> list[runs.Run]:
    """A sweep's best runs, the best first. Raises: DlrunError naming those whose weights are gone."""
    result = parent.result
    if not result:
        raise DlrunError(f"sweep {parent.short_id} has no result yet", f"dlrun sweep --resume {parent.short_id}")
    sign = -1.0 if result["goal"]["mode"] == "max" else 1.0
    done = [row for row in result["trials"] if row["state"] == "complete"]
    best = sorted(done, key=lambda row: sign * row["values"][0])[:count]
    found = [runs.load(folder / row["run"] / "artifacts") for row in best]
    if gone := [run.short_id for run in found if not run.checkpoints.is_dir()]:
        raise DlrunError(
            f"sweep {parent.short_id}: the weights of {', '.join(gone)} are gone (search.keep)",
            f"use --top {count - len(gone)}, or sweep again with search.keep={count}",
            Exit.DATA,
        )
    return found


# ---------------------------------------------------------------- the end


def show(parent: runs.Run, options: Options) -> None:
    """The final table (or the JSON object) on stdout."""
    result = parent.result or {}
    if options.as_json:
        print_json(making.result_object(parent) | {"trials": result.get("trials", []), "best": result.get("best")})
        return
    console = result_console()
    goal = result["goal"]
    sign = -1.0 if goal["mode"] == "max" else 1.0
    done = sorted((row for row in result["trials"] if row["values"]), key=lambda row: sign * row["values"][0])
    names = list(dict.fromkeys(name for row in done for name in row["settings"]))
    rows = [
        [
            row["number"],
            (row["run"] or "")[:8],
            row["values"][0],
            *[row["settings"].get(name, "") for name in names],
            row["state"],
        ]
        for row in done[:10]
    ]
    console.print(table(["trial", "run", f"valid/{goal['name']}", *names, ""], rows))
    states = [row["state"] for row in result["trials"]]
    counted = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "fail") if state in states)
    console.print(f"{len(states)} trials: {counted}")
    console.print(f"best     dlrun train {shlex.join(result['best']['overrides'])}", soft_wrap=True, markup=False)
    console.print(f"sweep    {parent.id}  {parent.status}")
    console.print(f"see it   dlrun compare {parent.short_id}", soft_wrap=True)


# ---------------------------------------------------------------- signals


class _Stopped(BaseException):
    """A signal asked the sweep to stop."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@contextlib.contextmanager
def _stopping_signals() -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once
        raise _Stopped(signal.Signals(number).name)

    before: dict[int, Callable | int | None] = {
        number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
