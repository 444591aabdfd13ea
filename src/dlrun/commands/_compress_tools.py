"""What `dlrun compress` lends its methods: the run's data, the training loop, the metrics, teachers, students."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlrun import assembly, build, predictor, runs
from dlrun.compression import _layers, _masks
from dlrun.config import convert
from dlrun.config.schema import RunConfig
from dlrun.contracts import Batch, Predictor, Pretrained, Task, Transferred
from dlrun.errors import DlrunError
from dlrun.predictor import TrainedModel
from dlrun.randomness import permutation
from dlrun.registry import Registry
from dlrun.training import checkpoint
from dlrun.training.batches import Feed, placer
from dlrun.training.distributed import World
from dlrun.training.evaluate import batches, evaluate
from dlrun.training.guards import caught_signals, deterministic, memory_errors
from dlrun.training.loop import Engine, fit
from dlrun.training.metrics_log import MetricsLog
from dlrun.training.precision import Precision
from dlrun.training.state import Progress, State, seed_generators

FINETUNING = "finetuning"  # of the run's folder, while it is made: the checkpoints of each fine-tuning


class Interrupted(BaseException):
    """A signal ended a fine-tuning, which goes on from there. name: SIGINT or SIGTERM."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class CompressionTools:
    """See contracts.CompressionTools. begin: makes the run, once it is sure that a method applies.

    A compression that was killed is done again from its start, which finds what its fine-tunings left: those that ended
    are not done again, and one that did not goes on from its checkpoint. All else it does is fast, and comes out alike.
    """

    def __init__(
        self, source: TrainedModel, config: RunConfig, registry: Registry, folder: Path, reporter: Any,
        begin: Callable[[], runs.Run],
    ) -> None:  # fmt: skip
        self.seed, self.spec, self.device = config.seed, source.spec, source.device
        self.task: Task = build.task(config.task, registry, source.spec)
        self.source = source.run.id
        self.augments = bool(config.data.augment)
        self.step = source.step  # of the weights now; fine-tuning moves it
        self.keeps_zeros = False  # whether weights that are zero when a fine-tuning begins are zero at its end
        self._source, self._config, self._registry, self._folder = source, config, registry, folder
        self._reporter, self._begin = reporter, begin
        self._finetunings = 0  # so far
        self._world = World(0, 1, source.device)
        self._precision = Precision.of(config.train.precision, source.device)
        self._place = placer(source.device, config.hardware.channels_last)

    def batches(self, split: str, limit: int | None = None) -> Iterator[Batch]:
        """See contracts."""
        data = self._source.dataset
        rows = permutation(len(data.split(split)), "calibration", self.seed)[:limit]
        for part in rows.split(self._config.data.batch_size):
            batch = data.split(split).gather(part)
            if len(batch["id"]):
                yield data.inputs.prepare(self._place(batch))

    def score(self, model: nn.Module, split: str = "valid") -> dict[str, float]:
        """See contracts."""
        data = self._source.dataset
        size = 2 * self._config.data.batch_size
        stream = batches(data.split(split), data.inputs, batch_size=size, place=self._place)
        return evaluate(model, self.task, stream, self._precision, self._world)

    def predictor(self, reference: str) -> Predictor:
        """See contracts."""
        found = predictor.load(runs.find(self._folder, reference).folder, self.device.type, self._registry)
        for member in getattr(found, "members", [found]):
            member._dataset = self._source.dataset if member.config.data == self._source.config.data else None
        return found

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        """See contracts. Raises: DlrunError for a pretrained one, which would begin without its weights."""
        made = build.model(convert.to_model(config, self._registry), self._registry, self.spec, self.seed)
        if isinstance(made, Pretrained):
            raise DlrunError(
                f"distill: a student model={config['name']} would begin without its pretrained weights",
                "train it first, and let that run be taught: compression.distill.teacher=RUN",
            )
        return made.to(self.device)

    def finetune(
        self,
        model: nn.Module,
        duration: str,
        *,
        task: Task | None = None,
        lr_scale: float = 0.1,
        after_step: Callable[[int, int], None] | None = None,
    ) -> nn.Module:
        """See contracts. No average of the weights is kept: what a method holds still would not be still in it.

        What was pruned before stays zero.
        """
        if not trainable(model):
            raise DlrunError(
                "these weights are kept in integers, in 16 bits or in a graph: they cannot be trained",
                "let the step that trains come before the one that quantizes: compression=[…]",
            )
        length = _layers.length(duration)
        if not length.value:
            raise DlrunError(f"fine-tuning for '{duration}' is none", '"2 epochs"')
        config, world = self._config, self._world
        patience = config.train.patience if after_step is None else None  # a hook wants all steps of its schedule
        train = replace(config.train, duration=length, ema=None, pictures=0, patience=patience)
        limits = (config.data.batch_size, config.train.accumulate)
        run = self._begin()
        folder = run.folder / FINETUNING / str(self._finetunings)
        self._finetunings += 1
        with deterministic(train.deterministic), memory_errors(world.device, *limits):
            engine = self._engine(model, replace(config, train=train), task or self.task, lr_scale, folder)
            if after_step is not None:
                total = engine.plan.total or 0
                engine.after_step.append(lambda step, _: after_step(step, total) or {})
            if self.keeps_zeros:
                put_back = _masks.keep_zeros(model)
                engine.after_step.append(lambda *_: put_back() or {})
            seed_generators(config.seed, world.rank)
            if not self._restored(engine, folder):
                self._fit(engine, run, folder)
        self.step += engine.state.progress.step
        return self._with_best(engine, folder)

    def _restored(self, engine: Engine, folder: Path) -> bool:
        """Bring back what an earlier sitting left of a fine-tuning. Returns whether it had come to its end."""
        found, warnings = checkpoint.newest_valid(folder)
        for line in warnings:
            self._reporter.note(f"warning: {line}; going back to the one before it")
        if found is None:
            return False
        is_over = "over" in (kept := checkpoint.read_state(found))
        if is_over:
            checkpoint.load_model(engine.state.model, checkpoint.read_tensors(found, "weights"), str(found))
            engine.state.progress = Progress.from_json(kept["over"])
        else:
            engine.state.restore(found)
        progress = engine.state.progress
        progress.loss_sum = progress.loss_sum.to(self._world.device)
        for hook in engine.after_step:  # they find what they knew at this step
            hook(progress.step, [])
        self._reporter.note(f"fine-tuning {'was done' if is_over else 'resumed'} at step {progress.step}")
        return is_over

    def _fit(self, engine: Engine, run: runs.Run, folder: Path) -> None:
        """To the end, of which the weights stay. Raises: Interrupted, with all that it takes to go on."""
        progress = engine.state.progress
        log: Any = _Onwards(run, self.step, progress.step)
        engine.log = log
        self._reporter.begin(engine.plan, progress.step)
        try:
            with caught_signals(engine.signals):
                ended = fit(engine)
        finally:
            self._reporter.end()
            log.close()
        if ended in ("SIGINT", "SIGTERM"):
            engine.save(False)
            raise Interrupted(ended)
        weights = {"weights": checkpoint.model_tensors(engine.state.model)}
        # A number beyond all of its own: it is the newest, and takes the place of none.
        checkpoint.save(folder, progress.step + 1, checkpoint.Contents(weights, {"over": progress.to_json()}))
        checkpoint.prune(folder, 1)

    def _engine(self, model: nn.Module, config: RunConfig, task: Task, lr_scale: float, folder: Path) -> Engine:
        data, registry, world = self._source.dataset, self._registry, self._world
        parts = getattr(task, "parts", None)
        grouped = build.optimizer(config.optimizer, registry, Transferred(model), parts)
        loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        state = State(model, grouped.optimizer, self._precision, None, parts, Progress(loss_sum=loss_sum), world)
        augment = build.augmentation(config.data, registry, data.spec)
        feed = Feed(data.split("train"), data.inputs, augment, config.data.batch_size, config.train.accumulate,
                    config.seed, config.data.workers, world, self._place)  # fmt: skip
        plan = build.plan(config.train, feed.steps_per_epoch)

        def save(best: bool) -> None:
            step = engine.last_saved = state.progress.step
            checkpoint.save(folder, step, state.contents())
            if best:
                checkpoint.point(folder, "best", step)
            checkpoint.prune(folder, 1)

        schedule = build.schedule(config.schedule, registry, plan, feed.steps_per_epoch)
        engine = Engine(
            model=assembly.wrapped(model, config, world), task=task, state=state, feed=feed, plan=plan,
            schedule=schedule, precision=self._precision, log=None, reporter=self._reporter, save=save,
            evaluate=lambda: self._valid(model),
            lr_scales=[lambda fraction, own=own: lr_scale * own(fraction) for own in grouped.lr_scales],
        )  # fmt: skip
        return engine

    def _valid(self, model: nn.Module) -> dict[str, float]:
        if "valid" not in self._source.dataset.splits:
            return {}
        return {f"valid/{name}": value for name, value in self.score(model).items()}

    def _with_best(self, engine: Engine, folder: Path) -> nn.Module:
        """The model with the weights that were best on validation; the last where there is none."""
        model = engine.state.model
        if engine.state.progress.best_step is not None:
            found, _ = checkpoint.newest_valid(folder, first="best")
            assert found is not None, "it was saved when it was best"
            checkpoint.load_model(model, checkpoint.read_tensors(found, "weights"), str(found))
        return model.eval()


def trainable(model: nn.Module) -> bool:
    """Whether gradients reach a model's weights: layers that are kept in integers say `trains = False`."""
    parts = (getattr(part, "trains", True) for part in model.modules())
    return all(trains is not False for trains in parts) and any(p.requires_grad for p in model.parameters())


class _Onwards:
    """The run's metrics, at steps that go on from those of the source and of earlier fine-tunings (`first`)."""

    def __init__(self, run: runs.Run, first: int, resumed_step: int) -> None:
        self._log, self._first = MetricsLog(run.metrics_file, first + resumed_step), first

    def write(self, step: int, values: dict[str, float]) -> None:
        self._log.write(self._first + step, values)

    def close(self) -> None:
        self._log.close()
