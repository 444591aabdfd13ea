"""The transformer's encoder: every token looks at every other of its text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.errors import DlrunError
from dlrun.models import _transformer

# B batch, S places, D width, H heads, d width of a head


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over the tokens of a text, in each head."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.out = nn.Linear(width, width, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSD: Tensor, is_token_B11S: Tensor) -> Tensor:
        q, k, v = (_transformer.in_heads(part, self.heads) for part in self.qkv(x_BSD).chunk(3, dim=-1))
        dropout = self.dropout.p if self.training else 0.0
        y_BHSd = F.scaled_dot_product_attention(q, k, v, attn_mask=is_token_B11S, dropout_p=dropout)
        return self.dropout(self.out(_transformer.joined(y_BHSd)))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, norm: str, bias: bool, dropout: float):
        super().__init__()
        self.attention_norm = _transformer.norm(norm, width, bias)
        self.attention = SelfAttention(width, heads, bias, dropout)
        self.feed_forward_norm = _transformer.norm(norm, width, bias)
        self.feed_forward = _transformer.FeedForward(width, hidden, activation, bias, dropout)

    def forward(self, x_BSD: Tensor, is_token_B11S: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), is_token_B11S)
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))


class Encoder(nn.Module):
    """Embedded tokens, blocks and a norm: [B, S] to [B, S, D]."""

    def __init__(self, embedded: nn.Module, blocks: Sequence[EncoderBlock], norm: nn.Module) -> None:
        super().__init__()
        self.embedded = embedded
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, tokens_BS: Tensor, is_token_BS: Tensor) -> Tensor:
        x_BSD = self.embedded(tokens_BS)
        for block in self.blocks:
            x_BSD = block(x_BSD, is_token_BS[:, None, None])
        return self.norm(x_BSD)


class Embedded(nn.Module):
    """Embeddings of tokens plus those of their positions: learned ones, up to a length, or sinusoids.

    With sinusoids the embeddings, which then start small, are multiplied by sqrt(D) (Vaswani et al. 2017, section 3.4).
    """

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding | None, dropout: float) -> None:
        super().__init__()
        self.tokens, self.positions = tokens, positions
        self.scale = 1.0 if positions is not None else math.sqrt(tokens.embedding_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BS: Tensor, first: int = 0) -> Tensor:
        """[B, S, D]. first: the position of the first place. Raises: DlrunError past the last learned position."""
        last = first + tokens_BS.shape[1]
        if self.positions is None:
            x_BSD = self.scale * self.tokens(tokens_BS)
            places_SD = _transformer.sinusoids(last, x_BSD.shape[-1], x_BSD.device)[first:]
        else:
            if last > self.positions.num_embeddings:
                raise DlrunError(
                    f"model: a text of {last} tokens; there are {self.positions.num_embeddings} positions",
                    "cut the text",
                )
            x_BSD, places_SD = self.tokens(tokens_BS), self.positions.weight[first:last]
        return self.dropout(x_BSD + places_SD)
