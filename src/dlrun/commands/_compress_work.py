"""A compression as it is done: the steps so far, the run once there is one, its files and its proof."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _reading as reading
from dlrun.commands._terminal import TerminalReporter, print_json, result_console, table
from dlrun.config import check, convert
from dlrun.config.schema import CompressionConfig, RunConfig
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from torch import nn

    from dlrun.commands._compress_tools import CompressionTools
    from dlrun.commands.train import Options
    from dlrun.predictor import TrainedModel

PLAN = "plan.json"
ASKED = "compression.json"  # what was asked for, from which a compression that was killed is done again
_SHOWN = ("before", "after", "ratios", "gain", "remarks", "search")  # of the result, by --json


@dataclass
class Work:
    """A compression as it is done: the source, the steps so far, and the run once there is one."""

    source: runs.Run
    predictor: TrainedModel
    config: RunConfig
    options: Options
    reporter: TerminalReporter
    asked: dict[str, Any]  # see ASKED
    done: list[dict[str, Any]] = field(default_factory=list)  # steps, as plan.json has them
    run: runs.Run | None = None
    started: float = field(default_factory=time.perf_counter)
    extra: dict[str, Any] = field(default_factory=dict)  # of a search, for the result
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        from dlrun.commands._compress_proof import weigh
        from dlrun.commands._compress_tools import CompressionTools

        self.tools: CompressionTools = CompressionTools(
            self.predictor, self.config, self.options.registry, self.options.runs, self.reporter, self.begin
        )
        if self.source.record.verb == "compress":
            self.done = list(runs.read_json(self.source.folder / PLAN)["steps"])
        self.batch = next(self.tools.batches(self._split(), 2))
        self.weighed = self.before = weigh(self.predictor.model, self.batch, self.predictor.spec.inputs, self._known())

    def _known(self) -> Any:
        """What an earlier compression counted, where its graph cannot be counted any more."""
        from dlrun.commands._compress_proof import Weighed

        after = (self.source.result or {}).get("after")
        return Weighed(after["parameters"], after["nonzero"], after["macs"]) if after else None

    def _split(self) -> str:
        return next(name for name in ("test", "valid", "train") if name in self.predictor.dataset.splits)

    def begin(self) -> runs.Run:
        """The run's folder, made once a method has begun: one that cannot apply leaves nothing behind."""
        if self.run is None:
            named = [step.get("teacher") for step in self.asked["compression"].values()]
            teachers = [teacher for teacher in named if isinstance(teacher, str)]
            self.run = making.new_run(
                self.config, self.options.registry, self.options.runs, verb="compress",
                parents=list(dict.fromkeys([self.source.id, *teachers])),
                require_tracking=self.options.require_tracking, reporter=self.reporter, beside=self._methods(),
            )  # fmt: skip
            runs.write_json(self.run.folder / ASKED, self.asked)
            self._stack.enter_context(runs.hold(self.run.folder))
            self.reporter.note(f"run {self.run.short_id}: compresses {self.source.short_id}")
        return self.run

    def _methods(self) -> list[tuple[str, str]]:
        """What rebuilds the run's model beside its config: the methods of compressions before, and those asked for."""
        names = [step["method"] for step in self.done] + [each["name"] for each in self.asked["compression"].values()]
        return [("compression", name) for name in dict.fromkeys(names)]

    def go_on(self, run: runs.Run) -> None:
        """Work on this run, which an earlier sitting began. Raises: DlrunError if another process does."""
        self._stack.enter_context(runs.hold(run.folder))
        making.note_resume(run, {})
        self.run = making.running(run)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Lets go of the run's lock at the end; its status says how it ended."""
        from dlrun.commands._compress_tools import Interrupted

        with self._stack:
            try:
                yield
            except BaseException as error:
                if self.run is not None:
                    killed = isinstance(error, (KeyboardInterrupt, Interrupted))
                    reason = str(error).partition("\n")[0] or type(error).__name__
                    making.finish(self.run, "KILLED" if killed else "FAILED", reason)
                raise

    def require(self, steps: dict[str, CompressionConfig]) -> None:
        """Raises: DlrunError for what is wrong with any step's settings, or missing, before the first one works."""
        from dlrun import build
        from dlrun.contracts import WithRequirements

        if not steps:
            raise DlrunError("compression: the list is empty", "compression=NAME; see: dlrun list compression")
        for step in steps.values():
            method = build.compressor(step, self.options.registry, self.predictor.spec)
            if isinstance(method, WithRequirements):
                method.require_ready()
        if next(iter(steps.values())).options.get("student"):
            return
        if self.is_several():
            raise DlrunError(
                f"run {self.source.short_id} is an ensemble, which is no single model",
                "distil it: compression=distill model@compression.distill.student=NAME",
            )
        if _is_one_graph(self.predictor.model):
            raise DlrunError(
                f"run {self.source.short_id} is kept as one graph, which no further method can change",
                f"start from the run before it: dlrun compress {self.source.record.parents[0][:8]} compression=NAME",
            )

    def apply(self, steps: dict[str, CompressionConfig]) -> nn.Module:
        """The source's model after every step."""
        model = self.predictor.model
        for name, step in steps.items():
            model = self.step(model, name, step)
        return model

    def is_several(self) -> bool:
        """Whether the source is an ensemble without weights of its own, or copies of a model."""
        if self.source.record.verb == "ensemble":
            return not self.source.checkpoints.is_dir()
        return self.config.model.copies > 1

    def step(self, model: nn.Module, name: str, step: CompressionConfig) -> nn.Module:
        """The model after one step, which is noted in `done`."""
        from dlrun import build
        from dlrun.commands._compress_proof import weigh

        if _is_one_graph(model) and not step.options.get("student"):
            last = self.done[-1]["name"]
            raise DlrunError(
                f"{name}: {last} leaves one graph, which no further method can change", f"let {last} be last"
            )
        self.reporter.note(f"{name} …")
        registry, spec = self.options.registry, self.predictor.spec
        self.tools.keeps_zeros = _has_zeros(self.done)
        model, plan = build.compressor(step, registry, spec).compress(model, self.tools)
        plan = dict(plan)
        report = plan.pop("report", {})
        self.done.append(
            {"name": name, "method": step.name, "options": step.options, "plan": plan, "report": report}
        )  # fmt: skip
        if "model" in plan:
            student = convert.to_model(plan["model"], registry)
            self.config = replace(self.config, model=student)
        self.weighed = weigh(model.eval(), self.batch, spec.inputs, self.weighed)
        for key, value in report.items():
            self.reporter.note(f"  {key}: {_short(value)}")
        return model

    def finish(self, model: nn.Module) -> runs.Run:
        """Save, read back, measure, write the result."""
        from dlrun import serving
        from dlrun.commands import _figures
        from dlrun.commands._compress_tools import FINETUNING

        run = self.begin()
        check.write(run.folder, self.config)  # of a student the model is known only now
        run = making.keep_components(run, self.config, self.options.registry, self._methods())
        self._save(run, model)
        after = reading.load(run, self.options, self.reporter, str(self.predictor.device.type), self.config)
        result = self._result(run, after)
        runs.write_json(run.folder / "result.json", result)
        serving.write_mlmodel(run.folder, run_id=run.id)
        _figures.draw(run)
        run = making.finish(run, "FINISHED", "complete")
        shutil.rmtree(run.folder / FINETUNING, ignore_errors=True)  # last: until then a resume needs it
        return run

    def _save(self, run: runs.Run, model: nn.Module) -> None:
        from dlrun.training import checkpoint

        self.predictor.spec.save(run.folder)
        plan = json.dumps({"steps": self.done}, separators=(",", ":"))  # not indented: its bytes count as the model's
        runs.write_atomically(run.folder / PLAN, plan + "\n")
        digest = hashlib.sha256((run.folder / PLAN).read_bytes()).hexdigest()
        contents = checkpoint.Contents({"weights": checkpoint.model_tensors(model)}, {"plan": digest})
        checkpoint.save(run.checkpoints, self.tools.step, contents)
        checkpoint.point(run.checkpoints, "best", self.tools.step)

    def _result(self, run: runs.Run, after: TrainedModel) -> dict[str, Any]:
        from dlrun.commands import _compress_proof as proof
        from dlrun.commands._ensemble_scores import gain
        from dlrun.commands.evaluate import measured
        from dlrun.training.metrics_log import MetricsLog

        split, goal = self._split(), after.task.goal
        # The data of both is one; neither decodes it again.
        after._dataset = self.predictor.dataset
        batches = list(self.tools.batches(split, 4 * after.config.data.batch_size))
        full = [batch for batch in batches if len(batch["id"]) == len(batches[0]["id"])]
        both = [self.predictor_before(), after]
        sides, outputs, metrics = [], [], {}
        for predictor, weighed, rates in zip(both, (self.before, self.weighed), proof.measure(both, full), strict=True):
            outputs.append(predictor.predict_split(split))
            metrics, _ = measured(predictor.task, outputs[-1], split)
            sides.append(proof.side(predictor, weighed, rates, metrics, _files(predictor)))
            sides[-1]["goal_interval"] = proof.interval(predictor.task, outputs[-1])
        difference = gain(after.task, outputs[1], outputs[:1], 1000, 0)
        log = MetricsLog(run.metrics_file, self.tools.step)
        log.write(self.tools.step, metrics)
        log.close()
        before, now = sides
        return {
            "goal": {"name": goal.metric, "mode": goal.mode, "value": metrics.get(f"{split}/{goal.metric}"),
                     "split": split},
            "metrics": metrics, "step": self.tools.step, "best_step": self.tools.step,
            "seconds": time.perf_counter() - self.started,
            "rate": {"samples_per_second": now["samples_per_second"]},
            "parameters": now["parameters"], "before": before, "after": now, "ratios": proof.ratios(before, now),
            "gain": difference, "remarks": proof.remarks(before, now),
            "steps": [{name: step[name] for name in ("name", "method", "options", "report")} for step in self.done],
        } | self.extra  # fmt: skip

    def predictor_before(self) -> TrainedModel:
        """The source's, whose model a method may have changed in place: read anew."""
        from dlrun import predictor

        own = for_reading(self.source, self.config, self.options)
        device = str(self.predictor.device.type)
        fresh = predictor.load(self.source.folder, device, self.options.registry, own)
        fresh._dataset = self.predictor.dataset
        return fresh


def show(run: runs.Run, options: Options) -> None:
    """The table (or the JSON object) on stdout."""
    from dlrun.commands import _compress_proof as proof

    result = run.result or {}
    names = [name for name in _SHOWN if name in result]
    if options.as_json:
        print_json(making.result_object(run) | {name: result[name] for name in names})
        return
    console = result_console()
    rows = proof.compared(result["before"], result["after"], result["ratios"])
    console.print(table(["", "before", "after", "change"], rows))
    goal, found = result["goal"], result["gain"]
    spread = result["after"]["goal_interval"]
    within = f" (95 % interval {spread[0]:.4g} to {spread[1]:.4g})" if spread else ""
    paired = "" if found["low"] is None else f" ({found['low']:+.4f} to {found['high']:+.4f})"
    console.print(f"{goal['split']}/{goal['name']} {goal['value']:.4f}{within}; gain {found['value']:+.4f}{paired}")
    for line in result["remarks"]:
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    console.print(f"run      {run.id}  of {run.record.parents[0][:8]}\nfolder   {run.folder}", soft_wrap=True)


def _files(predictor: Any) -> list[Path]:
    """What a predictor is loaded from: weights and the plan, of an ensemble its members'."""
    from dlrun import _predictor_ensemble as ensembles

    run = predictor.run
    if run.record.verb == "ensemble" and not run.checkpoints.is_dir():
        members = [(ensembles.member_folder(run, each), each["step"]) for each in ensembles.read_plan(run)["members"]]
    else:
        members = [(run.folder, predictor.step)]
    found = {}
    for folder, step in members:
        name = "best" if step is None else f"{step:08d}"
        found |= dict.fromkeys([folder / "checkpoints" / name / "weights.safetensors", folder / PLAN])
    return [path for path in found if path.is_file()]


def _is_one_graph(model: nn.Module) -> bool:
    """Whether a model is a finished graph, of ONNX Runtime or of torch, which has no layers."""
    return getattr(model, "hides", False) is True


def _has_zeros(steps: list[dict[str, Any]]) -> bool:
    """Whether a step pruned weights or gave them codebooks, after which no student took their place."""
    last = max((index for index, step in enumerate(steps) if "model" in step["plan"]), default=-1)
    return any({"sparsity", "codebooks"} & step["plan"].keys() for step in steps[last + 1 :])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} …"


def for_reading(source: runs.Run, config: RunConfig, options: Options) -> RunConfig:
    """The source's own config, with the hardware and batches that were asked for."""
    own = check.read(source.folder, options.registry)
    data = replace(own.data, batch_size=config.data.batch_size, workers=config.data.workers)
    precision = replace(own.train, precision=config.train.precision)
    return replace(own, hardware=config.hardware, data=data, train=precision)
