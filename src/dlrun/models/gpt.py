"""GPT: a decoder-only transformer for language modelling, with GPT-2's parts or Llama's, and a cache for generation."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, _transformer
from dlrun.models._transformer import Cached, Place

# B batch, T time, C context, D width, H heads, d width of a head, V vocabulary


class Attention(nn.Module):
    """Every place looks at itself and those before it: softmax(q k^T / sqrt(d)) v, in each head."""

    def __init__(self, width: int, heads: int, rotary: _transformer.Rotary | None, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.out = nn.Linear(width, width, bias)
        self.rotary = rotary
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.in_heads(x_BTD)
        dropout = self.dropout.p if self.training else 0.0
        return self.leave(F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout))

    def start(self, x_BTD: Tensor, room: int) -> tuple[Tensor, Cached]:
        """As forward, and keys and values, kept with room for so many tokens."""
        q, k, v = self.in_heads(x_BTD)
        return self.leave(F.scaled_dot_product_attention(q, k, v, is_causal=True)), Cached.of(k, v, room)

    def step(self, x_B1D: Tensor, cached: Cached, place: Place) -> Tensor:
        """One more token a row; its keys and values are added to the cache."""
        q, k, v = self.in_heads(x_B1D, place.position)
        k, v = cached.append(k, v, place)
        return self.leave(F.scaled_dot_product_attention(q, k, v, attn_mask=place.seen))

    def in_heads(self, x_BTD: Tensor, position_B: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, H, T, d]."""
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1))
        if self.rotary is None:
            q, k, v = qkv.unbind(2)
        else:
            (q, k), v = self.rotary(qkv[:, :, :2], position_B).unbind(2), qkv[:, :, 2]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def leave(self, y_BHTd: Tensor) -> Tensor:
        return self.dropout(self.out(_transformer.joined(y_BHTd)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self, attention: Attention, feed_forward: nn.Module, attention_norm: nn.Module, feed_forward_norm: nn.Module
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward_norm, self.feed_forward = feed_forward_norm, feed_forward

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.feed(x_BTD + self.attention(self.attention_norm(x_BTD)))

    def start(self, x_BTD: Tensor, room: int) -> tuple[Tensor, Cached]:
        y_BTD, cached = self.attention.start(self.attention_norm(x_BTD), room)
        return self.feed(x_BTD + y_BTD), cached

    def step(self, x_B1D: Tensor, cached: Cached, place: Place) -> Tensor:
        return self.feed(x_B1D + self.attention.step(self.attention_norm(x_B1D), cached, place))

    def feed(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class State(NamedTuple):
    """What has been read so far; of every tensor the first dimension is the row. `step` writes into the caches.

    tokens: int64 [B, C], the window, anything after a row's last.   lengths: int64 [B], tokens in it.
    caches: of each layer.   shortest, longest: the least and the greatest of lengths.
    """

    tokens: Tensor
    lengths: Tensor
    caches: tuple[Cached, ...]
    shortest: int
    longest: int


class Gpt(nn.Module):
    """Embeddings, blocks, a norm, and a linear head over the vocabulary."""

    def __init__(
        self, tokens: nn.Embedding, positions: nn.Embedding | None, dropout: float, blocks: list[Block],
        norm: nn.Module, head: nn.Linear, context: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens, self.positions = tokens, positions
        self.dropout = nn.Dropout(dropout)
        self.blocks: Any = nn.ModuleList(blocks)
        self.norm, self.head = norm, head
        self.context = context

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each place. Raises: DlrunError beyond the context."""
        length = tokens_BT.shape[1]
        if length > self.context:
            raise DlrunError(f"model: {length} tokens are more than the context of {self.context}", "cut the text")
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))

    def embed(self, tokens_BT: Tensor, position_B: Tensor | None = None) -> Tensor:
        """[B, T, D], from position 0 on, or of one token a row at these positions."""
        x_BTD = self.tokens(tokens_BT)
        if self.positions is not None:
            weight = self.positions.weight
            x_BTD = x_BTD + (weight[: tokens_BT.shape[1]] if position_B is None else weight[position_B][:, None])
        return self.dropout(x_BTD)

    @torch.no_grad()
    def start(self, tokens_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, State]:
        """Read prompts, padded at the right; of those longer than the context its last tokens.

        Returns the logits [B, V] of the token after each prompt, and the state for `step`.
        """
        window = torch.arange(self.context, device=tokens_BT.device)
        places = ((lengths_B - self.context).clamp(min=0)[:, None] + window).clamp(max=tokens_BT.shape[1] - 1)
        lengths_B = lengths_B.clamp(max=self.context)
        return self._read(tokens_BT.gather(1, places), lengths_B, int(lengths_B.min()), int(lengths_B.max()))

    def _read(self, tokens_BC: Tensor, lengths_B: Tensor, shortest: int, longest: int) -> tuple[Tensor, State]:
        # What stands after a row's last token is later than all that is looked at.
        x_BTD, caches = self.embed(tokens_BC[:, :longest]), []
        for block in self.blocks:
            x_BTD, cached = block.start(x_BTD, self.context)
            caches.append(cached)
        rows = torch.arange(len(lengths_B), device=lengths_B.device)
        logits_BV = self.head(self.norm(x_BTD[rows, lengths_B - 1]))
        return logits_BV, State(tokens_BC, lengths_B, tuple(caches), shortest, longest)

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token a row: the logits [B, V] of the next, and the state.

        A full window moves on by a token. Every place then has another position and has lost something it had seen,
        so that the window is read anew: the result is that of a model without a cache.
        """
        window_BC, lengths_B, caches, shortest, longest = state
        if longest == self.context:
            window_BC, lengths_B = _moved(tokens_B, window_BC, lengths_B)
            return self._read(window_BC, lengths_B, min(shortest + 1, longest), longest)
        window_BC = window_BC.scatter(1, lengths_B[:, None], tokens_B[:, None])
        place = Place.after(lengths_B, shortest, longest)
        x_B1D = self.embed(tokens_B[:, None], lengths_B)
        for block, cached in zip(self.blocks, caches, strict=True):
            x_B1D = block.step(x_B1D, cached, place)
        logits_BV = self.head(self.norm(x_B1D[:, 0]))
        return logits_BV, State(window_BC, lengths_B + 1, caches, shortest + 1, longest + 1)


def _moved(tokens_B: Tensor, window_BC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Windows and lengths with a token more; those that are full lose their first."""
    context = window_BC.shape[1]
    full_B1 = (lengths_B == context)[:, None]
    window_BC = torch.where(full_B1, window_BC.roll(-1, dims=1), window_BC)
    window_BC = window_BC.scatter(1, lengths_B.clamp(max=context - 1)[:, None], tokens_B[:, None])
    return window_BC, (lengths_B + 1).clamp(max=context)


def build(
    spec: DataSpec,
    *,
    depth: int = 4,
    heads: int = 4,
    width: int = 128,
    hidden: int | None = None,
    positions: Literal["learned", "rope"] = "learned",
    norm: Literal["layer", "rms"] = "layer",
    activation: Literal["gelu", "relu", "silu", "relu_squared", "swiglu"] = "gelu",
    bias: bool = True,
    tied: bool = True,
    dropout: float = 0.0,
    init_std: float = 0.02,
) -> nn.Module:
    """A decoder-only transformer with the norm before each part (Radford et al. 2019, "GPT-2").

    With e the embedding of a token (plus that of its position) and L blocks:
        x_0 = e;   y_l = x_l + Attention(norm(x_l));   x_l+1 = y_l + FeedForward(norm(y_l));   logits = W norm(x_L)
    positions=rope norm=rms activation=swiglu bias=false are the blocks of Llama (Touvron et al. 2023, section 2.2).

    Settings:
    depth: number of blocks, at least 1
    heads: attention heads, a divisor of width
    width: of embeddings and of what runs from block to block
    hidden: units of each feed-forward layer; null for 4 x width, or with swiglu 8/3 x width
    positions: an embedding for each position, or rope, which turns queries and keys by their position
    norm: layer, or rms, which scales and does not centre
    activation: of the feed-forward layers; swiglu has a gate, and a third matrix
    bias: whether linear layers and layer norms add one
    tied: the head's weights are those of the embedding
    dropout: share of embeddings, attention and what each part adds, set to zero while training, in [0, 1)
    init_std: standard deviation of the first weights; what adds to the residual stream starts smaller by sqrt(2 depth)
    """
    vocabulary, context = spec.size("vocabulary"), spec.size("context")
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    _layers.require(init_std > 0, "init_std", init_std, "a number above 0")
    _transformer.check_heads(width, heads, even=positions == "rope")
    rotary = _transformer.Rotary(context, width // heads) if positions == "rope" else None
    units = _transformer.hidden_width(hidden, width, activation)
    blocks = [
        Block(
            Attention(width, heads, rotary, bias, dropout),
            _transformer.FeedForward(width, units, activation, bias, dropout),
            _transformer.norm(norm, width, bias),
            _transformer.norm(norm, width, bias),
        )
        for _ in range(depth)
    ]
    places = nn.Embedding(context, width) if positions == "learned" else None
    head = nn.Linear(width, vocabulary, bias=False)
    last_norm = _transformer.norm(norm, width, bias)
    model = Gpt(nn.Embedding(vocabulary, width), places, dropout, blocks, last_norm, head, context)
    _transformer.initialise(model, init_std, residual_layers=2 * depth)
    if tied:
        model.head.weight = model.tokens.weight
    return model
