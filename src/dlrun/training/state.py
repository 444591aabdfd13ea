"""Everything a resumed run must find again, in one place: a part that is not here does not survive."""

from __future__ import annotations

import base64
import json
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dlrun.randomness import key
from dlrun.training import checkpoint
from dlrun.training.distributed import World
from dlrun.training.precision import Precision


@dataclass
class Progress:
    """Where a run stands. seconds, joules: of training, evaluation and saving, over all its resumes."""

    step: int = 0
    seconds: float = 0.0
    joules: float = 0.0  # when this was saved; 0 where no counter can be read
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_gain: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    loss_count: int = 0  # sum and count since the last logged row

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: value for name, value in vars(self).items() if name != "loss_sum"} | {
            "loss_sum": float(self.loss_sum).hex()
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> Progress:
        """The inverse of `to_json`."""
        sums = torch.tensor(float.fromhex(stored["loss_sum"]), dtype=torch.float64)
        return Progress(**{**stored, "loss_sum": sums})


@dataclass
class State:
    """The parts with memory. `model` is the bare module, without DDP or compile around it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    average: AveragedModel | None
    parts: nn.Module | None  # what a task wrapper trains beside the model
    progress: Progress
    world: World

    @property
    def weights(self) -> nn.Module:
        """The module to evaluate and to hand on: the averaged one if there is one."""
        return self.average.module if self.average is not None else self.model

    def contents(self) -> checkpoint.Contents:
        """All of it, for a checkpoint. Collective: every rank must call it."""
        tensors, plain = checkpoint.optimizer_contents(self.optimizer)
        files = {"weights": checkpoint.model_tensors(self.weights), "optimizer": tensors}
        if self.average is not None:
            files["raw"] = checkpoint.model_tensors(self.model)
        if self.parts is not None:
            files["parts"] = checkpoint.model_tensors(self.parts)
        state = {
            "progress": self.progress.to_json(),
            "optimizer": plain,
            "scaler": self.precision.scaler.state_dict(),
            "average_updates": int(self.average.n_averaged) if self.average is not None else None,
            "world_size": self.world.size,
            "rng": [payload.decode() for payload in self.world.gather_bytes(_random_state().encode())],
        }
        return checkpoint.Contents(files, state)

    def restore(self, folder: Any) -> None:
        """Bring every part back from a verified checkpoint folder."""
        state = checkpoint.read_state(folder)
        averaged = self.average is not None
        checkpoint.load_model(
            self.model, checkpoint.read_tensors(folder, "raw" if averaged else "weights"), str(folder)
        )
        if self.average is not None:
            checkpoint.load_model(self.average.module, checkpoint.read_tensors(folder, "weights"), str(folder))
            self.average.n_averaged.fill_(state["average_updates"])
        if self.parts is not None:
            checkpoint.load_model(self.parts, checkpoint.read_tensors(folder, "parts"), str(folder))
        checkpoint.load_optimizer(self.optimizer, checkpoint.read_tensors(folder, "optimizer"), state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.progress = Progress.from_json(state["progress"])
        if self.world.rank < len(state["rng"]) and state["world_size"] == self.world.size:
            _restore_random_state(state["rng"][self.world.rank])


def averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """The exponential moving average of a model's weights and buffers, or None."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def seed_generators(seed: int, rank: int) -> None:
    """Seed every generator a model may draw from (dropout, a user's own code), differently on each rank."""
    own = key("rank", seed, rank) & 0xFFFFFFFF
    torch.manual_seed(own)
    random.seed(own)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(own)


def _random_state() -> str:
    """Every generator a model may draw from, as JSON text."""
    state: dict[str, Any] = {"torch": _encode(torch.get_rng_state()), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = [str(kind), keys.tolist(), *rest]
    return json.dumps(state)


def _restore_random_state(text: str) -> None:
    state = json.loads(text)
    torch.set_rng_state(_decode(state["torch"]))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda"]))
    if "numpy" in state:
        import numpy

        kind, keys, *rest = state["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


def _encode(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
