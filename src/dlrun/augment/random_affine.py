"""Scale, stretch, shift and turn pictures, with their masks and boxes."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dlrun.augment._boxes import moved
from dlrun.augment._checks import of_targets, ordered_pair, picture_shape, within
from dlrun.contracts import IGNORED, Augmentation, Batch, DataSpec
from dlrun.randomness import Draws

# B batch, C channels, H x W pixels of pictures, h x w pixels of masks, K boxes of the fullest picture


def build(
    spec: DataSpec,
    *,
    scale: tuple = (0.8, 1.25),
    aspect: tuple = (0.9, 1.1),
    translate: float = 0.1,
    degrees: float = 0.0,
    fill: int = 114,
    edges: Literal["fill", "repeat"] = "fill",
    min_visible: float = 0.3,
    shift_targets: dict | None = None,
) -> Augmentation:
    """Each picture is changed about its centre by its own draws: scaled, turned, shifted, in one resampling
    (bilinear; masks take the nearest pixel). A box becomes the upright one around its turned corners.

    Settings:
        scale: least and largest factor on lengths; drawn evenly on a log scale.
        aspect: least and largest factor on width over height; drawn evenly on a log scale.
        translate: largest shift along each side, as a share of that side, 0 to 1.
        degrees: largest turn to either side, 0 to 180.
        fill: value of pixels that come from outside the picture, 0 to 255; in a mask they are ignored.
        edges: such pixels get the value of fill, or repeat the picture's edge (of which no network reads the shift).
        min_visible: a box of which less than this share is left in the picture is dropped, 0 to 1.
        shift_targets: {TARGET: NUMBER}, what a target gains where a picture is shifted right by its whole width (the
            steering angle that would lead back: Bojarski et al. 2016, "End to End Learning for Self-Driving Cars").
    """
    picture_shape(spec, "random_affine")
    scale = ordered_pair("random_affine", "scale", scale, 0.05, 20)
    aspect = ordered_pair("random_affine", "aspect", aspect, 0.05, 20)
    within("random_affine", "translate", translate, 0, 1)
    within("random_affine", "degrees", degrees, 0, 180)
    within("random_affine", "fill", fill, 0, 255)
    within("random_affine", "min_visible", min_visible, 0, 1)
    gain_T = of_targets(spec, shift_targets, "random_affine.shift_targets") if shift_targets else None

    def random_affine(batch: Batch, draws: Draws) -> Batch:
        image = batch["image"]
        height, width = image.shape[-2:]
        u_B5 = draws.uniform(5)
        size_B, ratio_B = _between(u_B5[:, 0], scale), _between(u_B5[:, 1], aspect).sqrt()
        shift_B2 = (2 * u_B5[:, 2:4] - 1) * translate * torch.tensor([width, height], device=u_B5.device)
        angle_B = torch.deg2rad((2 * u_B5[:, 4] - 1) * degrees)
        change = Change(size_B * ratio_B, size_B / ratio_B, angle_B, shift_B2[:, 0], shift_B2[:, 1])
        result = batch | {
            "image": _sampled(image, change.sources(height, width, height, width), "bilinear", fill, edges)
        }
        if gain_T is not None and spec.target in batch:
            target = batch[spec.target]
            gained_BT = (shift_B2[:, :1] / width).to(target) * gain_T.to(target)
            result[spec.target] = target + gained_BT.reshape(target.shape)
        if "mask" in batch:
            mask_B1hw = batch["mask"].unsqueeze(1)
            grid = change.sources(height, width, *mask_B1hw.shape[-2:])
            result["mask"] = _sampled(mask_B1hw, grid, "nearest", IGNORED).squeeze(1)
        return moved(result, change.boxes(batch["boxes"], height, width), min_visible) if "boxes" in batch else result

    return random_affine


def _between(u_B: Tensor, pair: tuple[float, float]) -> Tensor:
    low, high = math.log(pair[0]), math.log(pair[1])
    return torch.exp(low + (high - low) * u_B)


class Change(NamedTuple):
    """What happens to each picture about its centre: scaled by x and y, turned (radians), shifted (pixels)."""

    x_B: Tensor
    y_B: Tensor
    angle_B: Tensor
    right_B: Tensor
    down_B: Tensor

    def sources(self, height: int, width: int, rows: int, columns: int) -> Tensor:
        """Where each pixel of a result of rows x columns comes from, as `grid_sample` has it: [B, rows, columns, 2],
        x and y from -1 to 1 over the picture of height x width that the change is said of.

        A sum of what its row and what its column give: a matrix product for each pixel takes ten times as long.
        """
        device = self.x_B.device
        x_w = (torch.arange(columns, device=device) + 0.5) * (width / columns) - width / 2
        y_h = (torch.arange(rows, device=device) + 0.5) * (height / rows) - height / 2
        x_Bw, y_Bh = x_w - self.right_B.unsqueeze(1), y_h - self.down_B.unsqueeze(1)
        cos_B1, sin_B1 = torch.cos(self.angle_B).unsqueeze(1), torch.sin(self.angle_B).unsqueeze(1)
        to_x_B1, to_y_B1 = 2 / (width * self.x_B).unsqueeze(1), 2 / (height * self.y_B).unsqueeze(1)
        grid = torch.empty(len(self.x_B), rows, columns, 2, device=device)
        torch.add((cos_B1 * to_x_B1 * x_Bw)[:, None], (sin_B1 * to_x_B1 * y_Bh)[..., None], out=grid[..., 0])
        torch.add((-sin_B1 * to_y_B1 * x_Bw)[:, None], (cos_B1 * to_y_B1 * y_Bh)[..., None], out=grid[..., 1])
        return grid

    def boxes(self, boxes_BK4: Tensor, height: int, width: int) -> Tensor:
        """The upright boxes around the changed ones; they may reach out of the picture."""
        x_BK4 = (boxes_BK4[..., [0, 2, 2, 0]] - width / 2) * self.x_B.reshape(-1, 1, 1)
        y_BK4 = (boxes_BK4[..., [1, 1, 3, 3]] - height / 2) * self.y_B.reshape(-1, 1, 1)
        cos, sin = torch.cos(self.angle_B).reshape(-1, 1, 1), torch.sin(self.angle_B).reshape(-1, 1, 1)
        turned_x = cos * x_BK4 - sin * y_BK4 + (self.right_B + width / 2).reshape(-1, 1, 1)
        turned_y = sin * x_BK4 + cos * y_BK4 + (self.down_B + height / 2).reshape(-1, 1, 1)
        return torch.stack([turned_x.amin(2), turned_y.amin(2), turned_x.amax(2), turned_y.amax(2)], 2)


def _sampled(image: Tensor, grid: Tensor, mode: str, fill: int, edges: str = "fill") -> Tensor:
    """Pixels from these places, and fill or the nearest pixel from outside; of the type and memory format they were."""
    if not len(image):  # grid_sample takes no empty batch
        return image
    padding = "zeros" if edges == "fill" else "border"
    found = functional.grid_sample(image.float() - fill, grid, mode, padding, align_corners=False).add_(fill)
    return torch.empty_like(image).copy_(found if image.is_floating_point() else found.round_().clamp_(0, 255))
