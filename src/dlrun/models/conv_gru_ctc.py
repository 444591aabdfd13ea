"""Speech to characters: convolutions over frames and bands, a bidirectional GRU, a label for each frame (CTC)."""

from __future__ import annotations

import copy
from typing import Literal

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _frames, _layers, _recurrent

# B batch, C channels, T frames, F bands, D units, O outputs of the GRU, K characters and the blank


class ConvGruCtc(nn.Module):
    """Two convolution blocks that halve the bands (and the first ones time), a layer, the GRU, a linear head."""

    def __init__(
        self,
        blocks: list[_frames.ConvBlock],
        time_halvings: int,
        between: nn.Linear,
        recurrent: _recurrent.Recurrent,
        dropout: float,
        head: nn.Linear,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.time_halvings = time_halvings
        self.between = between
        self.recurrent, self.packed = recurrent, True
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, spectrogram_BTF: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T', K], label 0 the blank, and how many of the T' are the example's own."""
        x_BCTF = _frames.masked(spectrogram_BTF[:, None], frames_B)
        for index, block in enumerate(self.blocks):
            x_BCTF = block(x_BCTF, frames_B)
            x_BCTF, frames_B = _frames.halved(x_BCTF, frames_B, in_time=index < self.time_halvings, in_bands=True)
        x_BTD = self.between(x_BCTF.permute(0, 2, 1, 3).flatten(2)).relu()
        read = self.recurrent if self.packed else self.recurrent.masked
        y_BTO, _ = read(self.dropout(x_BTD), frames_B)
        return self.head(self.dropout(y_BTO)), frames_B

    def exportable(self) -> nn.Module:
        """The same weights without packing."""
        unpacked = copy.copy(self)
        unpacked.packed = False
        return unpacked


def build(
    spec: DataSpec,
    *,
    channels: tuple[int, ...] = (16, 32),
    time_halvings: int = 1,
    width: int = 128,
    hidden: int = 128,
    layers: int = 2,
    dropout: float = 0.2,
    norm: Literal["batch", "group", "none"] = "batch",
) -> nn.Module:
    """A small DeepSpeech 2 (Amodei et al. 2016, section 3).

    Settings:
    channels: width of each convolution block, one number a block; every block halves the bands
    time_halvings: blocks, from the first, that halve time too; frames left over must be more than characters
    width: units that the bands of a frame are gathered into
    hidden: units of the GRU in each direction, at least 1
    layers: of the GRU, at least 1
    dropout: share of what the GRU is given, of what passes between its layers and of what it gives set to 0, in [0, 1)
    norm: normalisation after every convolution
    """
    bands, size = _frames.num_features(spec, "conv_gru_ctc"), spec.size("characters")
    sizes = _layers.positive_integers("channels", channels)
    _layers.require(bool(sizes), "channels", list(sizes), "at least one block")
    _layers.require(0 <= time_halvings <= len(sizes), "time_halvings", time_halvings, f"an integer in 0..{len(sizes)}")
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _recurrent.check(hidden, layers, dropout)
    blocks = []
    for before, after in zip((1, *sizes), sizes, strict=False):
        blocks.append(_frames.ConvBlock(before, after, 1, 3, norm))
        bands = (bands + 1) // 2
    recurrent = _recurrent.Recurrent("gru", width, hidden, layers, True, dropout)
    _recurrent.initialise(recurrent, "orthogonal")
    between, head = nn.Linear(sizes[-1] * bands, width), nn.Linear(2 * hidden, size)
    model = ConvGruCtc(blocks, time_halvings, between, recurrent, dropout, head)
    return _layers.initialise(model, "kaiming", "relu")
