"""What the models of frames share: sizes of the data, which places are frames, and pooling in time."""

# B batch, C channels, T frames, F numbers of a frame

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, _text


def num_features(spec: DataSpec, model: str) -> int:
    """Numbers of a frame. Raises: DlrunError for data that is no sequence of frames."""
    if "features" not in spec.sizes or len(spec.inputs) != 2:
        raise DlrunError(
            f"model: {model} needs frames of sound; this data has {', '.join(spec.inputs)}",
            "data=speech data.path=PATH, or data=tones",
        )
    return spec.size("features")


def masked(x_BCTF: Tensor, lengths_B: Tensor) -> Tensor:
    """Zeros after each row's last frame, as if nothing came after it."""
    there_BT = _text.is_token(x_BCTF[:, 0], lengths_B)
    return x_BCTF.masked_fill(~there_BT[:, None, :, None], 0.0)


def halved(x_BCTF: Tensor, lengths_B: Tensor, in_time: bool, in_bands: bool) -> tuple[Tensor, Tensor]:
    """The maximum of each two frames and of each two bands; an odd one is alone. Values are not below 0."""
    size = (2 if in_time and x_BCTF.shape[2] > 1 else 1, 2 if in_bands and x_BCTF.shape[3] > 1 else 1)
    return max_pool2d(x_BCTF, size, ceil_mode=True), (lengths_B + size[0] - 1) // size[0]


class ConvBlock(nn.Module):
    """Convolutions over frames and bands, each normalised; padding stays zero, so it changes no frame."""

    def __init__(self, before: int, after: int, convolutions: int, kernel: int, norm: str) -> None:
        super().__init__()
        sizes = [before, *[after] * convolutions]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(size, after, kernel, padding=kernel // 2, bias=norm == "none") for size in sizes[:-1]
        )
        self.norms = nn.ModuleList(_layers.norm_2d(norm, after) for _ in range(convolutions))

    def forward(self, x_BCTF: Tensor, lengths_B: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_BCTF = masked(norm(convolution(x_BCTF)).relu(), lengths_B)
        return x_BCTF
