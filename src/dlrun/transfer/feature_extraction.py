"""Feature extraction: the body stays as it came, and only a head is trained on what it gives."""

from __future__ import annotations

from torch import nn

from dlrun.contracts import DataSpec, Tools, Transferred
from dlrun.errors import DlrunError
from dlrun.transfer import _fit, _layout


def build(
    model: nn.Module,
    spec: DataSpec,
    tools: Tools,
    source: str,
    *,
    replace_head: bool | None = None,
    cache_features: bool = True,
) -> Transferred:
    """Load the weights, and freeze all but the head; the body stays in eval mode.

    Of a model that got only its backbone (a detector, a segmenter) all the rest trains.

    Settings:
    replace_head: whether the head starts anew; null: where the classes differ in number or (as far as known) in name
    cache_features: compute what the body gives once and keep it, where nothing augments the data
    """
    result = _fit.fit(model, tools.weights(source), spec.labels, replace_head)
    result.head = _layout.find_head(model)
    result.frozen = (result.body,) if result.body else tuple(_layout.outside(model, result.head))
    if not result.frozen:
        raise DlrunError("transfer: the model is nothing but a head; there is no body to freeze", "transfer=finetune")
    # A head that is a convolution (SqueezeNet) has layers after it: its features are not what the logits come from.
    # One that says tokens has features at every place of a text, not one vector an example.
    is_last = isinstance(model.get_submodule(result.head), nn.Linear)
    result.cache_features = (
        cache_features and is_last and not result.body and bool(spec.sizes.keys() & {"classes", "labels", "targets"})
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(_layout.inside(name, part) for part in result.frozen))
    model.eval()
    model.get_submodule(result.head).train()
    return result
