"""Losses of one class a pixel; pixels that are IGNORED in the mask are in none of them."""

# B batch, C classes, H height, W width

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dlrun.contracts import IGNORED


class Shaping(NamedTuple):
    """What a user sets of the losses. weights_C: a factor by class, or None."""

    weights_C: Tensor | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0


def cross_entropy_loss(logits_BCHW: Tensor, mask_BHW: Tensor, shaping: Shaping) -> Tensor:
    """Cross-entropy of a pixel, averaged over all pixels of a picture and summed over pictures.

    An ignored pixel adds 0 to the sum and 1 to the count: so every pixel that does count weighs the same, whatever
    share of its picture is ignored, and no device has to be asked how many there are.
    """
    return _pixelwise(logits_BCHW, mask_BHW, shaping).sum() / mask_BHW[0].numel()


def focal_loss(logits_BCHW: Tensor, mask_BHW: Tensor, shaping: Shaping) -> Tensor:
    """As `cross_entropy_loss`, each pixel multiplied by (1 - p)^gamma, p the probability of its class.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4, with a softmax over the classes.
    """
    loss_BHW = _pixelwise(logits_BCHW, mask_BHW, shaping)
    log_p_BHW = -_pixelwise(logits_BCHW, mask_BHW, Shaping())
    # Away from 0, where the slope of a root (gamma below 1) is infinite.
    missing_BHW = (-torch.expm1(log_p_BHW)).clamp(min=1e-6)
    return (missing_BHW**shaping.focal_gamma * loss_BHW).sum() / mask_BHW[0].numel()


def dice_loss(logits_BCHW: Tensor, mask_BHW: Tensor, shaping: Shaping) -> Tensor:
    """1 - 2 |truth and prediction| / (|truth| + |prediction|), probabilities taken as shares of a pixel, times B.

    Of every class over the whole batch, then averaged (by the weights) over the classes that the batch's masks hold.
    Source: Drozdzal et al. 2016, "The Importance of Skip Connections in Biomedical Image Segmentation", section 3.
    """
    num_classes = logits_BCHW.shape[1]
    p_BCHW = logits_BCHW.softmax(1) * (mask_BHW != IGNORED)[:, None]
    classes_C = torch.arange(num_classes, device=mask_BHW.device)
    truth_BCHW = mask_BHW[:, None] == classes_C[:, None, None]
    both_C = (p_BCHW * truth_BCHW).sum((0, 2, 3))
    there_C = truth_BCHW.sum((0, 2, 3))
    dice_C = 2 * both_C / (p_BCHW.sum((0, 2, 3)) + there_C).clamp(min=1e-6)
    weights_C = (there_C > 0).to(dice_C.dtype)
    if shaping.weights_C is not None:
        weights_C = weights_C * shaping.weights_C.to(dice_C)
    return len(mask_BHW) * (weights_C * (1 - dice_C)).sum() / weights_C.sum().clamp(min=1e-6)


def _pixelwise(logits_BCHW: Tensor, mask_BHW: Tensor, shaping: Shaping) -> Tensor:
    """[B, H, W] cross-entropy, 0 where the mask is IGNORED."""
    weights_C = None if shaping.weights_C is None else shaping.weights_C.to(logits_BCHW)
    return cross_entropy(
        logits_BCHW,
        mask_BHW.long(),
        weights_C,
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=shaping.label_smoothing,
    )


PixelLoss = Callable[[Tensor, Tensor, Shaping], Tensor]
LOSSES: dict[str, PixelLoss] = {"cross_entropy": cross_entropy_loss, "dice": dice_loss, "focal": focal_loss}
ADDITIVE = {"cross_entropy", "focal"}
