"""Any segmentation architecture of torchvision, by its name, untrained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, did_you_mean
from dlrun.models import _layers

# B batch, C channels, H height, W width, K classes


class Segmenter(nn.Module):
    """The parts of a torchvision model, under its names, from images to logits.

    takes_levels: the classifier wants the backbone's feature maps by name, rather than the last one alone.
    """

    def __init__(
        self, backbone: nn.Module, classifier: nn.Module, aux_classifier: nn.Module | None, takes_levels: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier
        self.takes_levels = takes_levels
        self.averages_all = any(type(part).__name__ == "ASPPPooling" for part in classifier.modules())

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images to logits [B, K, h, w], an eighth or a sixteenth of their size (torchvision's own forward brings them
        to the images' size, a task does here); in training with an auxiliary classifier, a pair of such."""
        if self.training and x_BCHW.shape[0] == 1 and self.averages_all:
            raise DlrunError(
                "model: DeepLab normalises one number a channel and picture over the batch, and a batch of one has no "
                "deviation to train on",
                "let every micro-batch hold 2 pictures and more: data.batch_size, train.accumulate",
            )
        features = self.backbone(x_BCHW)
        logits = self.classifier(features if self.takes_levels else features["out"])
        if self.training and self.aux_classifier is not None:
            return logits, self.aux_classifier(features["aux"])
        return logits


def build(spec: DataSpec, *, architecture: str, options: dict[str, Any] | None = None) -> nn.Module:
    """A model of torchvision.models.segmentation, with its last layer and first convolution made to fit the data.

    Weights are not loaded here: transfer=finetune transfer.from=torchvision:NAME does that.

    Settings:
    architecture: name in torchvision.models.segmentation, e.g. fcn_resnet50, deeplabv3_mobilenet_v3_large
    options: further arguments of the architecture, e.g. {aux_loss: true} for a second classifier while training
    """
    channels, _, _ = _layers.image_shape(spec, architecture)
    num_classes = spec.size("pixel_classes")
    maker = _maker(architecture)
    settings = _settings(maker, architecture, options or {})
    made: Any = maker(weights=None, weights_backbone=None, progress=False, num_classes=num_classes, **settings)
    auxiliary = getattr(made, "aux_classifier", None)
    model = Segmenter(made.backbone, made.classifier, auxiliary, takes_levels=architecture.startswith("lraspp"))
    _layers.fit_channels(model, channels)
    return model


def _maker(architecture: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models(module=models.segmentation)
    if architecture not in known:
        raise DlrunError(
            f"model.architecture: torchvision has no '{architecture}' for segmentation",
            did_you_mean(architecture, known, otherwise=f"one of {', '.join(known)}"),
        )
    return models.get_model_builder(architecture)


def _settings(maker: Callable[..., nn.Module], architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, checked against the architecture."""
    set_here = {"weights", "weights_backbone", "progress", "num_classes", "kwargs"}
    known = set(inspect.signature(maker).parameters) - set_here
    for name in options:
        if name.startswith("weights"):
            raise DlrunError(
                f"model.options.{name}: weights come through transfer",
                f"transfer=finetune transfer.from=torchvision:{architecture}",
            )
        if name not in known:
            raise DlrunError(
                f"model.options: {architecture} has no '{name}'",
                did_you_mean(name, known, otherwise=f"it has {', '.join(sorted(known)) or 'no options'}"),
            )
    return options
