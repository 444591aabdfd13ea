"""A small Conformer: attention and convolution in every block; a label for each frame (CTC), or one for a recording."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _frames, _layers, _text, _transformer
from dlrun.models._encoder import SelfAttention

# B batch, C channels, T frames, F bands, D width, K labels


class FeedForward(nn.Sequential):
    """norm, D to 4 D, swish, D."""

    def __init__(self, width: int, dropout: float) -> None:
        inner = [nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)]
        super().__init__(nn.LayerNorm(width), *inner, nn.Dropout(dropout))


class Convolution(nn.Module):
    """norm, a gated layer, a convolution over time in each channel by itself, norm, swish, a layer.

    The norm in the middle is over channels, where the paper has one over the batch: padding then changes nothing.
    """

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.gated = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.inner_norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, is_frame_BT: Tensor) -> Tensor:
        y_BTD = F.glu(self.gated(self.norm(x_BTD))).masked_fill(~is_frame_BT[..., None], 0.0)
        y_BTD = self.depthwise(y_BTD.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.out(F.silu(self.inner_norm(y_BTD))))


class Block(nn.Module):
    """x + 1/2 FeedForward, + attention, + convolution, + 1/2 FeedForward, norm."""

    def __init__(self, width: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.before, self.after = FeedForward(width, dropout), FeedForward(width, dropout)
        self.attention_norm, self.attention = nn.LayerNorm(width), SelfAttention(width, heads, True, dropout)
        self.convolution, self.norm = Convolution(width, kernel, dropout), nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, is_frame_BT: Tensor) -> Tensor:
        x_BTD = x_BTD + 0.5 * self.before(x_BTD)
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), is_frame_BT[:, None, None])
        x_BTD = x_BTD + self.convolution(x_BTD, is_frame_BT)
        return self.norm(x_BTD + 0.5 * self.after(x_BTD))


class Conformer(nn.Module):
    """A convolution block that halves time and bands, sinusoidal positions, blocks, a linear head."""

    def __init__(
        self,
        front: _frames.ConvBlock,
        between: nn.Linear,
        blocks: list[Block],
        dropout: float,
        pooled: bool,
        head: nn.Linear,
    ) -> None:
        super().__init__()
        self.front, self.between = front, between
        self.blocks = nn.ModuleList(blocks)
        self.dropout, self.pooled, self.head = nn.Dropout(dropout), pooled, head

    def forward(self, spectrogram_BTF: Tensor, frames_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, K] of a recording's class; or [B, T', K], label 0 the blank, and how many of the T' count."""
        x_BCTF = self.front(_frames.masked(spectrogram_BTF[:, None], frames_B), frames_B)
        x_BCTF, frames_B = _frames.halved(x_BCTF, frames_B, True, True)
        x_BTD = self.between(x_BCTF.permute(0, 2, 1, 3).flatten(2))
        x_BTD = self.dropout(
            x_BTD + _transformer.sinusoids(x_BTD.shape[1], x_BTD.shape[2], x_BTD.device).to(x_BTD.dtype)
        )
        is_frame_BT = _text.is_token(x_BTD, frames_B)
        for block in self.blocks:
            x_BTD = block(x_BTD, is_frame_BT)
        if self.pooled:
            return self.head(_text.pooled(x_BTD, is_frame_BT, "mean"))
        return self.head(x_BTD), frames_B


def build(
    spec: DataSpec,
    *,
    depth: int = 4,
    width: int = 96,
    heads: int = 4,
    kernel: int = 15,
    channels: int = 32,
    dropout: float = 0.1,
) -> nn.Module:
    """The encoder of Gulati et al. 2020, "Conformer", section 2, with absolute positions, after one halving of time.

    Settings:
    depth: blocks, at least 1
    width: of what runs from block to block
    heads: attention heads, a divisor of width
    kernel: frames that a block's convolution sees, odd
    channels: of the convolution before the blocks, at least 1
    dropout: share of what each part adds and of attention set to zero while training, in [0, 1)
    """
    bands = _frames.num_features(spec, "conformer")
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _layers.require(kernel >= 1 and kernel % 2 == 1, "kernel", kernel, "an odd number")
    _layers.require(channels >= 1, "channels", channels, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    _transformer.check_heads(width, heads)
    is_spelled = "characters" in spec.sizes
    head = nn.Linear(width, spec.size("characters") if is_spelled else spec.num_outputs)
    front, between = _frames.ConvBlock(1, channels, 1, 3, "batch"), nn.Linear(channels * ((bands + 1) // 2), width)
    blocks = [Block(width, heads, kernel, dropout) for _ in range(depth)]
    return Conformer(front, between, blocks, dropout, not is_spelled, head)
