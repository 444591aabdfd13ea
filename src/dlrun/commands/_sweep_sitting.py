"""One sitting of a sweep: gives its workers trials, hears what becomes of them, keeps the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _sweep_plan as plans
from dlrun.commands import _sweep_results as results
from dlrun.commands._sweep_plan import Plan
from dlrun.commands._sweep_view import View
from dlrun.commands._sweep_workers import Worker, Workers
from dlrun.config import check
from dlrun.config.space import overrides
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    import optuna

    from dlrun.commands._sweep_study import Study
    from dlrun.commands.train import Options

_PATIENCE_SECONDS = 5.0  # with a worker whose line is dead
_MOST_RESTARTS = 2  # of one trial, where its worker died
_STUDY = "study.jsonl"


@dataclass(eq=False)
class Job:
    """A trial that is being trained."""

    trial: optuna.Trial
    child: runs.Run
    text: str  # its overrides
    mirror: Any
    restarts: int = 0


class Sitting:
    """From where a sweep's study is until its trials are done.

    sweep_id: whose trials these are.  home: the run whose folder this sitting writes to: the sweep's own, or the one
    of a machine that joined.
    """

    def __init__(self, sweep_id: str, home: runs.Run, plan: Plan, options: Options, workers: int, view: View) -> None:
        self.sweep_id, self.home, self.plan, self.options, self.view = sweep_id, home, plan, options, view
        self.joined = home.id != sweep_id
        self._noted: set[str] = set()
        gpus, hardware = len(making.hardware()["gpus"]), check.read_plain(home.folder)["hardware"]
        self.workers = Workers(workers, options.registry, home.folder, gpus, hardware)
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
                while self._give_work() or self._busy() or self._awaited():
                    self._hear()
                    self.view.update([worker for worker in self.workers.all if worker.job])
        finally:
            self.workers.close()
            for worker in self.workers.all:
                if worker.job is not None:
                    self._let_go(worker)
        if not self.joined:
            results.write(self.home, self.study, self.plan, self.options)

    # ------------------------------------------------ before

    def _study(self) -> Study:
        from dlrun.commands._sweep_study import Study, objectives

        chased = objectives(self._chased())
        storage = self.plan.search.storage or self.home.folder / _STUDY
        study = Study(
            self.sweep_id, storage, self.plan.search, self.plan.space, chased, self.options.registry, self.home.id
        )
        study.goals = self._goals_of_the_task()
        if self.plan.search.storage and not self.joined:
            study.publish(self.plan.to_json())
        return study

    def _chased(self) -> Sequence[str]:
        """The objectives, or what the task chases, asked of the first worker (which then has the data); it is asked,
        too, whether energy can be measured."""
        given, stored = self.plan.search.objectives, self.home.folder / "goal.json"
        if not stored.exists() and (not given or "energy_joules:" in " ".join(given)):
            first = self.workers.all[0]
            first.send(look=str(self.home.folder))
            while True:
                _, event = self.workers.heard.get()
                if event is None:
                    raise DlrunError(f"a worker of the sweep died: see {self.home.folder / 'workers.log'}")
                if event["event"] == "failed":
                    raise DlrunError(event["message"], event["hint"], Exit(event["code"]))
                if event["event"] == "goal":
                    runs.write_json(stored, {"goal": f"{event['name']}:{event['mode']}"})
                    break
        return given or [runs.read_json(stored)["goal"]]

    def _goals_of_the_task(self) -> tuple[str, ...]:
        """What `task.goal` may be, where the task has that setting: some metrics are reported only if they are it."""
        task = check.read_plain(self.home.folder)["task"]["name"]
        setting = self.options.registry.component("task", task).settings.get("goal")
        return setting.choices if setting else ()

    def _interrupted(self) -> list[tuple[optuna.Trial, runs.Run]]:
        """Trials that an earlier sitting left running, to go on with; those that had ended are told so."""
        left = []
        numbers = {
            runs.read_json(child.folder / "trial.json")["number"]: child
            for child in runs.listing(self.options.runs)
            if self.sweep_id in child.record.parents and (child.folder / "trial.json").exists()
        }
        for frozen in self.study.trials:
            if frozen.state.is_finished() or not self._ours(frozen):
                continue
            child = numbers.get(frozen.number)
            if child is None:
                self.study.lose(frozen)
                continue
            trial = self.study.again(frozen)
            if child.result and child.status != "RUNNING":
                self._tell(trial, making.finish(child, "FINISHED", _ended_as(child)))
            else:
                left.append((trial, child))
        return left

    def _ours(self, frozen: optuna.trial.FrozenTrial) -> bool:
        """Whether a running trial is of this sitting, or of one in this folder that is over."""
        sitting = frozen.user_attrs.get("sitting", self.sweep_id)
        folder = self.options.runs / sitting / "artifacts"
        return sitting == self.home.id or (folder.is_dir() and not runs.is_held(folder))

    # ------------------------------------------------ giving work

    def _busy(self) -> bool:
        return any(worker.job is not None for worker in self.workers.all)

    def _awaited(self) -> bool:
        """Whether other machines still train: the sweep is not over before they are done."""
        return bool(self.plan.search.storage) and not self.joined and bool(self.study.elsewhere())

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
        asked = self.study.ask()
        if asked is None:
            return False
        trial, values = asked
        chosen = overrides(self.plan.space, values)
        try:
            config = plans.config_of([*self.plan.fixed, *chosen], self.plan, self.options, f"trial {trial.number}")
        except DlrunError as error:
            self.view.note(f"trial {trial.number}  {' '.join(chosen)}  failed: {error.message.splitlines()[0]}")
            self.study.told(trial, None, error.message.splitlines()[0], pruned=False)
            self._stop_if_hopeless()
            return False
        child = making.new_run(
            config, self.options.registry, self.options.runs, verb="train", nested_under=self.sweep_id,
            reporter=self.view, tags={"dlrun.trial": str(trial.number)},
        )  # fmt: skip
        timed = any(objective.name == "latency" for objective in self.study.chased)
        runs.write_json(
            child.folder / "trial.json",
            {"number": trial.number, "overrides": chosen} | ({"latency": True} if timed else {}),
        )
        self.study.bind(trial, child.id, chosen)
        self.home = self.home.update(children=(*self.home.record.children, child.id))
        self._start(worker, trial, child, chosen)
        return True

    def _start(self, worker: Worker, trial: optuna.Trial, child: runs.Run, chosen: Sequence[str]) -> None:
        from dlrun import tracking

        child = making.running(child)
        mirror = tracking.Mirror(child.folder, report=self.view.note)
        mirror.start()
        worker.job, worker.latest = Job(trial, child, " ".join(chosen), mirror), {}
        worker.send(run=str(child.folder))

    # ------------------------------------------------ hearing

    def _hear(self) -> None:
        import queue

        if self.plan.search.storage:
            self.study.beat()
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
                worker.send(prune=self._prune(worker.job.trial, event["step"], event["values"]))
        elif event["event"] == "note" and worker.job is not None:
            self._note(worker.job.trial.number, event["text"])
        elif event["event"] == "ended":
            self._ended(worker, event["ended"])
        elif event["event"] == "failed":
            self._failed(worker, event["message"].splitlines()[-1])

    def _note(self, number: int, text: str) -> None:
        """Say what a trial says, but once what all of them say: how the data was split."""
        if text not in self._noted:
            self._noted.add(text)
            self.view.note(f"trial {number}: {text}")

    def _prune(self, trial: optuna.Trial, step: int, values: dict[str, float]) -> bool:
        """Whether a trial is to end. Raises: DlrunError where none can report what is searched for."""
        try:
            return self.study.prune(trial, step, values)
        except DlrunError:
            if self.plan.varies_metrics:
                return True  # `told` fails it for what it lacks; others may do better
            raise

    def _died(self, worker: Worker) -> None:
        """Go on with its trial in a new process; a trial that kills its workers fails."""
        job, how = worker.job, worker.process.end(_PATIENCE_SECONDS)
        fresh = self.workers.replace(worker)
        if job is None:
            return
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
            child = making.finish(job.child, "KILLED", how)
            self.view.note(f"trial {job.trial.number}: its process got {how}; it goes on from its checkpoint")
            self.waiting.append((job.trial, child))  # the sweep itself goes on: the signal was the worker's alone
            return
        reason = f"pruned at step {worker.latest.get('step')}" if how == "pruned" else how
        self._tell(job.trial, making.finish(runs.load(job.child.folder), "FINISHED", reason))
        if any(trial.number == job.trial.number for trial in self.study.failed()):  # it lacks an objective
            self._stop_if_hopeless()

    def _tell(self, trial: optuna.Trial, child: runs.Run) -> None:
        self.study.told(trial, child.result, child.record.reason, pruned=(child.folder / "pruned.json").exists())
        self.view.ended(self.study, trial.number)
        results.keep_the_best(self.sweep_id, self.study, self.options.runs)

    def _failed(self, worker: Worker, reason: str) -> None:
        job: Job = worker.job
        job.mirror.close(timeout_seconds=10)
        worker.job = None
        making.finish(runs.load(job.child.folder), "FAILED", reason)
        self.study.told(job.trial, None, reason, pruned=False)
        self.view.note(f"trial {job.trial.number}  {job.text}  failed: {reason}")
        results.keep_the_best(self.sweep_id, self.study, self.options.runs)
        self._stop_if_hopeless()

    def _stop_if_hopeless(self) -> None:
        failed, most = self.study.failed(), self.plan.search.max_failures
        if most is not None and len(failed) >= most:
            last = failed[-1].user_attrs["reason"]
            raise DlrunError(
                f"{len(failed)} trials failed (search.max_failures={most}); the last: {last}",
                f"mend it, and let more fail: dlrun sweep --resume {self.sweep_id[:8]} search.max_failures=null",
                Exit.TRAINING,
            )

    def _let_go(self, worker: Worker) -> None:
        """A trial that was stopped with the sweep: it goes on when the sweep does."""
        worker.job.mirror.close(timeout_seconds=2)
        child = runs.load(worker.job.child.folder)
        if not child.result:
            making.finish(child, "KILLED", "the sweep was stopped")


def _ended_as(child: runs.Run) -> str:
    """How a trial with a result ended whose sweep was killed before it could say so."""
    if child.status == "FINISHED" and child.record.reason:
        return child.record.reason
    pruned = child.folder / "pruned.json"
    return f"pruned at step {runs.read_json(pruned)['step']}" if pruned.exists() else "complete"
