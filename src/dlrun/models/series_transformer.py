"""A transformer encoder over the rows of a window of a series, to forecasts or to a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _series, _transformer
from dlrun.models._encoder import EncoderBlock

# B windows, P patches, W rows, C columns, D width


class SeriesTransformer(nn.Module):
    """Patches of rows, each a linear layer and a position; blocks, a norm; the last patch goes to the head."""

    def __init__(
        self, patch: int, embed: nn.Linear, blocks: list[EncoderBlock], width: int, dropout: float, head: _series.Head
    ) -> None:
        super().__init__()
        self.patch, self.embed = patch, embed
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width)
        self.dropout, self.head = nn.Dropout(dropout), head

    def forward(self, series_BWC: Tensor) -> Tensor:
        """Forecasts [B, H, T], or logits [B, K]."""
        whole = series_BWC.shape[1] // self.patch * self.patch  # the earliest rows may fill no patch
        patches_BPX = series_BWC[:, series_BWC.shape[1] - whole :].reshape(len(series_BWC), -1, self.embed.in_features)
        x_BPD = self.embed(patches_BPX)
        places_PD = _transformer.sinusoids(x_BPD.shape[1], x_BPD.shape[2], x_BPD.device)
        x_BPD = self.dropout(x_BPD + places_PD.to(x_BPD.dtype))
        is_there_B11P = torch.ones(1, 1, 1, x_BPD.shape[1], dtype=torch.bool, device=x_BPD.device)
        for block in self.blocks:
            x_BPD = block(x_BPD, is_there_B11P)
        return self.head(self.norm(x_BPD[:, -1]), series_BWC)


def build(
    spec: DataSpec, *, depth: int = 2, width: int = 64, heads: int = 4, patch: int = 1, dropout: float = 0.1
) -> nn.Module:
    """The encoder of Vaswani et al. 2017 with the norm before each part, every row looking at all of the window.

    Settings:
    depth: blocks, at least 1
    width: of what runs from block to block
    heads: attention heads, a divisor of width
    patch: rows that are taken together, at least 1 and at most the window (as in PatchTST; Nie et al. 2023)
    dropout: share of embeddings, attention, what each part adds and of the last features set to 0, in [0, 1)
    """
    columns, window = _series.num_columns(spec, "series_transformer"), spec.size("window")
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _layers.require(1 <= patch <= window, "patch", patch, f"an integer in 1..{window}")
    _transformer.check_heads(width, heads)
    head = _series.Head(spec, width, dropout)
    blocks = [EncoderBlock(width, heads, 4 * width, "gelu", "layer", True, dropout) for _ in range(depth)]
    return SeriesTransformer(patch, nn.Linear(patch * columns, width), blocks, width, dropout, head)
