"""As many colours as there are classes, told apart by every kind of colour vision as far as so many can be."""

from __future__ import annotations

import functools

import numpy as np

Colour = tuple[int, int, int]

# Okabe and Ito 2008, "Color Universal Design", without black.
_FIRST: tuple[Colour, ...] = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167), (240, 228, 66),
)  # fmt: skip
_MOST = 256  # colours made; a class beyond takes an earlier one again
_LEVELS = np.linspace(0, 255, 8).round()  # of each channel of a candidate
_LIGHTNESS = (0.35, 0.93)  # of a candidate; darker and lighter ones vanish in shadows and skies
_CHROMA = 0.2  # of a candidate, at most; pure blue (0.31) outshines whatever it is laid over

# Ottosson 2020, "A perceptual color space for image processing": linear sRGB -> cones -> OKLab.
_TO_CONES = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_TO_LAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip
# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency":
# what a person without green cones sees, in linear sRGB.
_DEUTERANOPIA = np.array([
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
])  # fmt: skip


def palette(num_classes: int) -> list[Colour]:
    """RGB 0..255 of each class; the first classes have the same colours whatever the number.

    The first seven are those of Okabe and Ito; each further one is the candidate furthest from all before it, the
    distance being that of normal sight plus that without green cones.
    """
    chosen = _chosen()
    return [chosen[index % len(chosen)] for index in range(num_classes)]


@functools.lru_cache(maxsize=1)
def _chosen() -> tuple[Colour, ...]:
    candidates_N3 = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(-1, 3)
    lab_N3 = _seen(candidates_N3)[0]
    is_moderate_N = (lab_N3[:, 0] > _LIGHTNESS[0]) & (lab_N3[:, 0] < _LIGHTNESS[1])
    candidates_N3 = candidates_N3[is_moderate_N & (np.hypot(lab_N3[:, 1], lab_N3[:, 2]) < _CHROMA)]
    found = list(_FIRST)
    gap_N = np.min([_distances(candidates_N3, colour) for colour in found], axis=0)
    while len(found) < min(_MOST, len(candidates_N3)):
        red, green, blue = candidates_N3[gap_N.argmax()].astype(int).tolist()
        found.append((red, green, blue))
        gap_N = np.minimum(gap_N, _distances(candidates_N3, found[-1]))
    return tuple(found)


def _distances(colours_N3: np.ndarray, other: Colour) -> np.ndarray:
    """How far each colour is from the other, to both kinds of sight together."""
    pairs = zip(_seen(colours_N3), _seen(np.array([other], dtype=float)), strict=True)
    return np.sum([np.linalg.norm(mine_N3 - theirs_13, axis=1) for mine_N3, theirs_13 in pairs], axis=0)


def _seen(colours_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """OKLab of RGB 0..255 as normal sight has it, and as sight without green cones has it."""
    share_N3 = colours_N3 / 255
    linear_N3 = np.where(share_N3 <= 0.04045, share_N3 / 12.92, ((share_N3 + 0.055) / 1.055) ** 2.4)
    simulated_N3 = np.clip(linear_N3 @ _DEUTERANOPIA.T, 0, 1)
    return _lab(linear_N3), _lab(simulated_N3)


def _lab(linear_N3: np.ndarray) -> np.ndarray:
    return np.cbrt(linear_N3 @ _TO_CONES.T) @ _TO_LAB.T
