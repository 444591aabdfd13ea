"""What a config may hold: frozen dataclasses with types, ranges and defaults. Decides what is legal.

A component's own settings are not here: they are the signature of its `build` (registry.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from dlrun.config.durations import Duration


class Range(NamedTuple):
    """Limits of a number; `above` and `below` are exclusive, `least` and `most` inclusive."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies within."""
        return value == value and not (
            (self.least is not None and value < self.least)
            or (self.most is not None and value > self.most)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        words = [("at least", self.least), ("at most", self.most), ("above", self.above), ("below", self.below)]
        return " and ".join(f"{word} {limit:g}" for word, limit in words if limit is not None)


Positive = Annotated[int, Range(least=1)]
Optional_Positive = Annotated[int | None, Range(least=1)]


@dataclass(frozen=True)
class TaskConfig:
    """What is learned.

    Settings:
    name: the component, a file of tasks/
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are batched.

    Settings:
    name: the component, a file of data/
    batch_size: examples of one optimizer step, over all processes and micro-batches
    workers: loader processes, used where the data streams
    bootstrap: train on as many examples as there are, drawn with replacement by this seed; null for each once
    augment: ordered mapping of augmentation to its settings, for training only, e.g. {flip: {}, mixup: {alpha: 0.2}}
    """

    name: str
    batch_size: Positive = 128
    workers: Annotated[int, Range(least=0)] = 2
    bootstrap: Annotated[int | None, Range(least=0, below=2**63)] = None
    augment: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture.

    Settings:
    name: the component, a file of models/
    copies: networks trained side by side, from seeds that follow each other, and averaged when asked; 1 for one
    """

    name: str
    copies: Positive = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights are updated.

    Settings:
    name: the component, a file of optimizers/
    decay_all: let weight decay touch norms and biases too; they are spared otherwise
    """

    name: str
    decay_all: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run.

    Settings:
    name: the component, a file of schedules/
    warmup: the learning rate rises linearly from near zero over this long, then the schedule begins
    """

    name: str
    warmup: Duration = field(default_factory=lambda: Duration.parse("0 steps"))
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TransferConfig:
    """What to start from; the key of `source` is `from`.

    Settings:
    name: the component, a file of transfer/, or none
    from: run:<id>, a file or folder of weights, package:NAME, torchvision:NAME, hub:ORG/NAME; unless set,
      model=pretrained starts from its own path
    """

    name: str
    source: str | None = field(default=None, metadata={"key": "from"})
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how precisely, and what is watched.

    Settings:
    duration: length of the run, in epochs, steps or minutes
    evaluate_every: how often the validation split is evaluated
    save_every: how often a checkpoint is written
    log_every: steps between two rows of training metrics
    precision: number format of the forward and backward pass; weights stay fp32
    accumulate: micro-batches of one step; the batch is cut into as many
    clip_norm: limit on the norm of all gradients together; null for none
    clip_value: limit on each entry of the gradients; null for none
    ema: decay of the averaged weights, which are then evaluated and kept, e.g. 0.999; null for none
    patience: evaluations without improvement before an early stop; null for none
    min_improvement: of the goal, below which an evaluation counts as none
    keep: newest checkpoints kept, beside the best
    deterministic: only deterministic algorithms; an error where an operation has none
    overfit_one_batch: train on the first batch alone, to see whether the model can learn at all
    diagnose: watch gradients and activations layer by layer, and judge them
    pictures: validation examples drawn with truth and prediction at each evaluation, into figures/; 0 for none
    """

    duration: Duration = field(default_factory=lambda: Duration.parse("10 epochs"))
    evaluate_every: Duration = field(default_factory=lambda: Duration.parse("1 epoch"))
    save_every: Duration = field(default_factory=lambda: Duration.parse("1 epoch"))
    log_every: Annotated[int, Range(least=1)] = 20
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Positive = 1
    clip_norm: Annotated[float | None, Range(above=0)] = None
    clip_value: Annotated[float | None, Range(above=0)] = None
    ema: Annotated[float | None, Range(above=0, below=1)] = None
    patience: Optional_Positive = None
    min_improvement: Annotated[float, Range(least=0)] = 0.0
    keep: Positive = 2
    deterministic: bool = False
    overfit_one_batch: bool = False
    diagnose: bool = False
    pictures: Annotated[int, Range(least=0, most=100)] = 16


@dataclass(frozen=True)
class HardwareConfig:
    """Where the run runs.

    Settings:
    device: auto takes the GPU if there is one, else the CPU
    processes: on this machine; the batch is shared out among them
    threads: of a process; null for OMP_NUM_THREADS, else its share of the cores
    channels_last: keep pictures in channels-last memory format, which some convolutions run faster on
    compile: run the model through torch.compile; the first steps are then slow
    timeout_seconds: a silent process is given up after it
    launcher: where a sweep's workers run: processes of this machine, or jobs of a SLURM cluster
    slurm: of those jobs, as submitit calls them, e.g. {slurm_partition: gpu, timeout_min: 240, gpus_per_node: 1}
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Positive = 1
    threads: Optional_Positive = None
    channels_last: bool = False
    compile: bool = False
    timeout_seconds: Positive = 600
    launcher: Literal["local", "slurm"] = "local"
    slurm: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is indexed.

    Settings:
    uri: an MLflow tracking store; null for MLFLOW_TRACKING_URI, else mlflow.db in the runs folder
    experiment: MLflow's name for the collection of runs
    system_metrics: record the load of processor, memory and GPUs
    """

    uri: str | None = None
    experiment: str = "dlrun"
    system_metrics: bool = True


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made from; config.yaml is this, resolved.

    Settings:
    seed: of weights, order, augmentation and splits; the same seed gives the same run
    name: of the run, for people
    """

    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    transfer: TransferConfig
    hardware: HardwareConfig
    tracking: TrackingConfig
    seed: Annotated[int, Range(least=0, below=2**63)] = 0
    name: str = ""


COUNTS = ("parameters", "latency", "seconds", "energy_joules")  # objectives that a result has beside its metrics


@dataclass(frozen=True)
class SearchConfig:
    """How `dlrun sweep` looks for better runs. It is beside a run's config: a run does not change by how it was found.

    Settings:
    name: the component, a file of search/
    trials: runs in all, restarts included
    keep: trials whose weights are kept, the best; the others keep their records
    max_failures: failed trials at which the sweep gives up; null for never
    pruner: when a trial is stopped early: below the median of the others, by successive halving (asha) or hyperband
    pruner_options: settings of Optuna's pruner of that name, e.g. {n_startup_trials: 10}
    objectives: metrics to be bettered, as "metric:max" or "metric:min"; the task's goal unless set. parameters,
        latency (milliseconds of one example), seconds and energy_joules count as metrics
    seed: of the search
    storage: of the study; a file in the sweep's folder unless set, postgresql://… where machines share one
    space: setting -> its values in Hydra's grammar; the command line's come before it. `when` holds those that
        exist for one choice of a group only: {when: {model: {resnet20: {model.width: "choice(16,32)"}}}}
    suggested: the space where nothing else gives one; an experiment says so what is worth trying
    """

    name: str
    trials: Positive = 20
    keep: Positive = 5
    max_failures: Optional_Positive = None
    pruner: Literal["none", "median", "asha", "hyperband"] = "median"
    pruner_options: dict[str, Any] = field(default_factory=dict)
    objectives: list[str] = field(default_factory=list)
    seed: Annotated[int, Range(least=0, below=2**32)] = 0
    storage: str | None = None
    space: dict[str, Any] = field(default_factory=dict)
    suggested: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompressionConfig:
    """One step of `dlrun compress`; the steps of a stack follow each other in the order they are named in.

    Settings:
    name: the component, a file of compression/
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EnsembleConfig:
    """How `dlrun ensemble` makes one predictor out of several.

    Settings:
    name: the component, a file of ensembles/
    calibrate: let predictions carry the temperature that was learned on the validation split; it is reported anyway
    resamples: of the test examples, for the confidence interval of the gain
    seed: of the resamples and of the shift
    shift: report how well changed inputs are told from the split's own by uncertainty; for classification; a pass more
    """

    name: str
    calibrate: bool = False
    resamples: Annotated[int, Range(least=10)] = 1000
    seed: Annotated[int, Range(least=0, below=2**32)] = 0
    shift: bool = False
    options: dict[str, Any] = field(default_factory=dict)


COMPONENT_GROUPS = ("task", "data", "model", "optimizer", "schedule", "transfer")
GROUPS = (*COMPONENT_GROUPS, "train", "hardware", "tracking", "experiment")
# Groups of verbs that are composed beside a run's config, and their settings.
VERBS: dict[str, type] = {"search": SearchConfig, "compression": CompressionConfig, "ensemble": EnsembleConfig}
STACKS = ("compression",)  # of these, those that take a list of choices: {choice: its settings}, in order
