"""What the methods of compression are tested with: small models, and tools that train and score them in a moment."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.config.durations import Duration
from dlrun.contracts import Batch, DataSpec, Predictor, Task
from dlrun.models import cnn, gpt, resnet, rnn, transformer, transformer_classifier, transformers
from dlrun.tasks import classification, language_model
from dlrun.training import checkpoint

IMAGES = DataSpec(("image",), "label", {"classes": 3, "channels": 1}, {"image": (1, 8, 8)})
TEXTS = DataSpec(
    ("tokens", "lengths"), "label", {"classes": 3, "vocabulary": 20, "length": 8}, {"tokens": (8,), "lengths": ()}
)
WINDOWS = DataSpec(("tokens",), "targets", {"vocabulary": 20, "context": 8}, {"tokens": (8,)})
PAIRS = DataSpec(
    ("source", "source_lengths", "tokens"), "targets",
    {"vocabulary": 20, "target_vocabulary": 20, "length": 8, "target_length": 8},
    {"source": (8,), "source_lengths": (), "tokens": (8,)},
)  # fmt: skip
BERT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip


def images_net(name: str = "cnn", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    if name == "resnet":
        return resnet.build(IMAGES, depth=8, width=8, **settings).eval()
    return cnn.build(IMAGES, channels=(8, 16), convolutions=1, dropout=0.0, **settings).eval()


def texts_net(name: str = "transformer_classifier", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    if name == "rnn":
        return rnn.build(TEXTS, width=8, hidden=16, dropout=0.0).eval()
    if name == "transformers":
        return transformers.build(TEXTS, architecture="bert", dropout=0.0, options=BERT).eval()
    sizes = {"depth": 3, "heads": 4, "width": 16, "dropout": 0.0}
    return transformer_classifier.build(TEXTS, **sizes | settings).eval()


def windows_net(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return gpt.build(WINDOWS, **{"depth": 3, "heads": 4, "width": 16} | settings).eval()


def pairs_net() -> nn.Module:
    torch.manual_seed(0)
    return transformer.build(PAIRS, depth=2, heads=4, width=16, dropout=0.0).eval()


def rows(spec: DataSpec, count: int = 64) -> Batch:
    """Examples whose labels can be learned: where a picture is bright, which token comes first."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (count, 8), generator=draw)
    lengths = torch.randint(3, 9, (count,), generator=draw)
    label = tokens[:, 0] % 3
    image = torch.randn(count, 1, 8, 8, generator=draw) * 0.1
    image[torch.arange(count), 0, 2 * label] += 1.0
    tokens_padded = tokens.masked_fill(torch.arange(8) >= lengths[:, None], 0) if "lengths" in spec.inputs else tokens
    known = {
        "id": torch.arange(count), "image": image, "label": label, "tokens": tokens_padded, "lengths": lengths,
        "targets": tokens.roll(-1, 1), "num_targets": torch.full((count,), 8), "source": tokens,
        "source_lengths": torch.full((count,), 8),
    }  # fmt: skip
    return {name: known[name] for name in ("id", *spec.inputs, spec.target, "num_targets")}


class Tools:
    """contracts.CompressionTools over `rows`. It counts what was asked of it."""

    seed, source, device, augments = 0, "0123abcd", torch.device("cpu"), False

    def __init__(self, spec: DataSpec, steps_per_epoch: int = 4, lr: float = 1e-2) -> None:
        self.spec, self.steps_per_epoch, self.lr = spec, steps_per_epoch, lr
        tokens = dataclasses.replace(spec, sizes=spec.sizes | {"context": 8})
        self.task: Any = classification.build(spec) if spec.target == "label" else language_model.build(tokens)
        self.rows = rows(spec)
        self.scored = self.trained = 0

    def batches(self, split: str, limit: int | None = None) -> Iterator[Batch]:
        yield {name: tensor[:limit] for name, tensor in self.rows.items()}

    def finetune(
        self, model: nn.Module, duration: str, *, task: Task | None = None, lr_scale: float = 0.1,
        after_step: Callable[[int, int], None] | None = None,
    ) -> nn.Module:  # fmt: skip
        """Adam, scored after every epoch, with the best weights at the end, as `dlrun train` does it."""
        self.trained += 1
        optimizer = torch.optim.Adam(model.parameters(), self.lr)
        total, best = Duration.parse(duration).steps(per_epoch=self.steps_per_epoch), None
        for step in range(1, total + 1):
            model.train()
            optimizer.zero_grad()
            loss = (task or self.task).loss(model, self.rows)
            (loss.sum / loss.count).backward()
            optimizer.step()
            if after_step is not None:
                after_step(step, total)
            if step % self.steps_per_epoch == 0 or step == total:
                value = self.score(model)[self.task.goal.metric]
                if best is None or self.task.goal.better(value, best[0]):
                    best = value, copy.deepcopy(model.state_dict())
        assert best is not None
        model.load_state_dict(best[1])
        return model.eval()

    def score(self, model: nn.Module, split: str = "valid") -> dict[str, float]:
        self.scored += 1
        model.eval()
        with torch.no_grad():
            outputs = self.task.outputs(model, self.rows)
            metrics = self.task.metrics()
            for metric in metrics:
                metric.update(outputs)
        return {name: value for metric in metrics for name, value in metric.compute().items()}

    def predictor(self, reference: str) -> Predictor:
        raise NotImplementedError

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        raise NotImplementedError


def said(model: nn.Module, spec: DataSpec) -> Tensor:
    """A model's answer on the rows, in evaluation."""
    batch = rows(spec)
    with torch.no_grad():
        return model.eval()(*[batch[name] for name in spec.inputs])


def read_back(method: Any, smaller: nn.Module, plan: Mapping[str, Any], fresh: nn.Module) -> nn.Module:
    """What a later process does: the architecture, reshaped by the plan after JSON, and the weights by name."""
    tensors = {name: tensor.clone() for name, tensor in checkpoint.model_tensors(smaller).items()}
    shaped = method.reshape(fresh, json.loads(json.dumps(plan)), None)
    checkpoint.load_model(shaped, tensors, "the file")
    return shaped.eval()
