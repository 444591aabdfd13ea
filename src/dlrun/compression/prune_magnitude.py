"""Set the smallest weights to zero, more and more of them while the rest trains on (Zhu and Gupta 2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dlrun.compression import _layers, _masks
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError

_UPDATES = 100  # times that masks are chosen anew: to sort all weights costs as much as some steps


def build(
    spec: DataSpec,
    *,
    sparsity: float = 0.5,
    scope: Literal["global", "layer", "n_m"] = "global",
    n: int = 2,
    m: int = 4,
    schedule: Literal["cubic", "linear", "once"] = "cubic",
    until: float = 0.75,
    finetune: str | None = "2 epochs",
    lr_scale: float = 0.1,
    ignore: list | None = None,
) -> Compressor:
    """Weights of linear, convolution and recurrent layers whose size |w| is smallest become zero and stay it; biases,
    norms and embeddings are spared. The zeros alone save no time: see prune_channels for that.

    With s the final sparsity and t in [0, 1] the time of training, the sparsity is s (1 - (1 - t / until)^3), which is
    Zhu and Gupta 2017, "To prune, or not to prune", eq. 1.

    Settings:
    sparsity: share of those weights that becomes zero, in [0, 1); 0 changes nothing
    scope: what competes: all weights (global), those of a layer, or (n_m) every m that follow each other
    n, m: of every m weights along a layer's inputs n stay, the sparsity is then 1 - n/m; GPUs want 2 and 4
    schedule: how sparsity grows while training: cubic, linear, or once: all of it before training
    until: share of the training in which it grows, in (0, 1]
    finetune: how long to train, e.g. "3 epochs"; null for not at all
    lr_scale: factor on the run's learning rate
    ignore: layers to leave alone, by name or pattern, e.g. [head, "stages.0.*"]
    """
    _layers.require(0 <= sparsity < 1, "prune_magnitude.sparsity", sparsity, "a number in [0, 1)")
    _layers.require(0 < until <= 1, "prune_magnitude.until", until, "a number in (0, 1]")
    _layers.require(1 <= n <= m, "prune_magnitude.n", n, f"an integer from 1 to m={m}")
    _layers.require_training("prune_magnitude", "finetune", finetune, lr_scale)
    final = 1 - n / m if scope == "n_m" else sparsity
    return PruneMagnitude(final, scope, n, m, schedule, until, finetune, lr_scale, ignore)


@dataclass(frozen=True)
class PruneMagnitude:
    """See `build`."""

    sparsity: float
    scope: str
    n: int
    m: int
    schedule: str
    until: float
    finetune: str | None
    lr_scale: float
    ignore: list | None

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model with zeros, and a plan that is a report alone: no shape changes."""
        before, weights = _layers.numbers(model), _masks.prunable(model, self.ignore, "prune_magnitude")
        choose = self._chooser(model, weights)
        if self.sparsity > 0:
            if _layers.trains(self.finetune):
                assert self.finetune is not None
                growth = _Growth(model, weights, choose, self._sparsity_at)
                growth.begin()
                growth.end(tools.finetune(model, self.finetune, lr_scale=self.lr_scale, after_step=growth.after_step))
            else:
                _masks.put_back(weights, choose(self.sparsity))
        return model, {"sparsity": self.sparsity, "report": _masks.report(before, model, weights)}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The model itself."""
        return model

    def _sparsity_at(self, position: float) -> float:
        """The sparsity after this share of the training."""
        if self.schedule == "once" or self.scope == "n_m":
            return self.sparsity
        grown = min(1.0, position / self.until)
        return self.sparsity * (_masks.cubic(grown) if self.schedule == "cubic" else grown)

    def _chooser(self, model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Callable[[float], _masks.Masks]:
        """A function from a sparsity to masks over the weights as they then are."""
        if self.scope != "n_m":
            return lambda sparsity: _masks.largest(_sizes(weights), sparsity, over_all=self.scope == "global")
        transposed = {f"{name}.weight" for name, layer in model.named_modules() if _layers.is_transposed(layer)}
        if self.sparsity and not _masks.n_of_m(weights, self.n, self.m, transposed):
            raise DlrunError(
                f"prune_magnitude: no layer of {_layers.kind(model)} has a multiple of {self.m} inputs",
                "compression.prune_magnitude.scope=global",
            )
        return lambda _: _masks.n_of_m(weights, self.n, self.m, transposed)


def _sizes(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().abs() for name, weight in weights.items()}


class _Growth:
    """Masks that grow during training, and what the last step left behind.

    Training gives back its best weights, and those may be of a time when more were left; the last are then taken.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        choose: Callable[[float], _masks.Masks],
        sparsity_at: Callable[[float], float],
    ) -> None:
        self.model, self.weights, self.choose, self.sparsity_at = model, weights, choose, sparsity_at
        self.masks: _masks.Masks = {}
        self.sparsity = 0.0
        self.last: dict[str, Tensor] = {}

    def begin(self) -> None:
        """The zeros that are there before the first step."""
        self._grow(self.sparsity_at(0.0))

    def after_step(self, step: int, total: int) -> None:
        """Choose anew where the sparsity has grown, and put the zeros back."""
        every = max(1, total // _UPDATES)
        self._grow(self.sparsity_at((step if step == total else step // every * every) / max(1, total)))
        _masks.put_back(self.weights, self.masks)
        if step == total:
            self.last = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def end(self, trained: nn.Module) -> None:
        """See to it that the model has all of its zeros. trained: what training gave back, the same model."""
        assert trained is self.model, "fine-tuning is in place"
        final = self.sparsity_at(1.0)
        if self.sparsity < final:  # it stopped early
            self._grow(final)
        elif self.last and not _masks.hold(self.weights, self.masks):
            self.model.load_state_dict(self.last)
        _masks.put_back(self.weights, self.masks)

    def _grow(self, sparsity: float) -> None:
        if sparsity > self.sparsity:
            self.masks, self.sparsity = self.choose(sparsity), sparsity
            _masks.put_back(self.weights, self.masks)
