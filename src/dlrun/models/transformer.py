"""The transformer: encoder and decoder of attention, for translation and its like."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, _text, _transformer
from dlrun.models._encoder import Embedded, Encoder, EncoderBlock
from dlrun.models._transformer import Cached, Place

# B batch, S places of the source, T of the target, D width, H heads, d width of a head, V vocabulary


class CausalAttention(nn.Module):
    """Every place of the target looks at itself and those before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        dropout = self.dropout.p if self.training else 0.0
        y_BHTd = F.scaled_dot_product_attention(*self.parts(x_BTD), is_causal=True, dropout_p=dropout)
        return self.dropout(self.out(_transformer.joined(y_BHTd)))

    def step(self, x_B1D: Tensor, said: Cached, place: Place) -> Tensor:
        """One more token a row; its keys and values are added to what was said."""
        q, k, v = self.parts(x_B1D)
        return self.out(_transformer.joined(F.scaled_dot_product_attention(q, *said.append(k, v, place))))

    def parts(self, x_BTD: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [B, H, T, d]."""
        return [_transformer.in_heads(part, self.heads) for part in self.qkv(x_BTD).chunk(3, dim=-1)]


class CrossAttention(nn.Module):
    """Every place of the target looks at the source."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def read(self, memory_BSD: Tensor) -> Cached:
        """Keys and values of the source, [B, H, S, d]."""
        keys, values = self.kv(memory_BSD).chunk(2, dim=-1)
        return Cached(_transformer.in_heads(keys, self.heads), _transformer.in_heads(values, self.heads))

    def forward(self, x_BTD: Tensor, source: Cached, is_token_B11S: Tensor) -> Tensor:
        q = _transformer.in_heads(self.q(x_BTD), self.heads)
        dropout = self.dropout.p if self.training else 0.0
        y_BHTd = F.scaled_dot_product_attention(q, *source, attn_mask=is_token_B11S, dropout_p=dropout)
        return self.dropout(self.out(_transformer.joined(y_BHTd)))


class DecoderBlock(nn.Module):
    """x + causal(norm(x)), then x + cross(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.causal_norm = nn.LayerNorm(width)
        self.causal = CausalAttention(width, heads, dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = _transformer.FeedForward(width, hidden, activation, True, dropout)

    def forward(self, x_BTD: Tensor, source: Cached, is_token_B11S: Tensor) -> Tensor:
        return self.look(x_BTD + self.causal(self.causal_norm(x_BTD)), source, is_token_B11S)

    def step(self, x_B1D: Tensor, source: Cached, is_token_B11S: Tensor, said: Cached, place: Place) -> Tensor:
        return self.look(x_B1D + self.causal.step(self.causal_norm(x_B1D), said, place), source, is_token_B11S)

    def look(self, x_BTD: Tensor, source: Cached, is_token_B11S: Tensor) -> Tensor:
        x_BTD = x_BTD + self.cross(self.cross_norm(x_BTD), source, is_token_B11S)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class State(NamedTuple):
    """What was read and said; of every tensor the first dimension is the row. `step` writes into `said`.

    sources, said: keys and values of each layer.   is_token: bool [B, 1, 1, S].   length: tokens said.
    """

    sources: tuple[Cached, ...]
    is_token: Tensor
    said: tuple[Cached, ...]
    length: int


class Transformer(nn.Module):
    """An encoder, a decoder that looks at it, and a linear head over the target's vocabulary."""

    def __init__(
        self, encoder: Encoder, embedded: Embedded, blocks: list[DecoderBlock], norm: nn.Module, head: nn.Linear,
        room: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.embedded = encoder, embedded
        self.blocks: Any = nn.ModuleList(blocks)
        self.norm, self.head = norm, head
        self.room = room

    def forward(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of the target's."""
        sources, is_token_B11S = self.read(source_BS, source_lengths_B)
        x_BTD = self.embedded(tokens_BT)
        for block, source in zip(self.blocks, sources, strict=True):
            x_BTD = block(x_BTD, source, is_token_B11S)
        return self.head(self.norm(x_BTD))

    def read(self, source_BS: Tensor, source_lengths_B: Tensor) -> tuple[tuple[Cached, ...], Tensor]:
        """Keys and values of the source for each block of the decoder, and which places are tokens [B, 1, 1, S]."""
        is_token_BS = _text.is_token(source_BS, source_lengths_B)
        memory_BSD = self.encoder(source_BS, is_token_BS)
        return tuple(block.cross.read(memory_BSD) for block in self.blocks), is_token_BS[:, None, None]

    @torch.no_grad()
    def start(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, State]:
        """Read sources. Returns the logits [B, V] after the first token of each target, and the state."""
        sources, is_token_B11S = self.read(source_BS, source_lengths_B)
        said = tuple(Cached.of(keys[:, :, :0], values[:, :, :0], self.room) for keys, values in sources)
        return self.step(tokens_B, State(sources, is_token_B11S, said, 0))

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token a row: the logits [B, V] of the next, and the state."""
        sources, is_token_B11S, said, length = state
        room = said[0].keys.shape[2]
        if length == room:  # sinusoids have no last position, so neither has a target
            said = tuple(Cached.of(*cached, 2 * room) for cached in said)
        place = Place(tokens_B, length, None)
        x_B1D = self.embedded(tokens_B[:, None], first=length)
        for block, source, cached in zip(self.blocks, sources, said, strict=True):
            x_B1D = block.step(x_B1D, source, is_token_B11S, cached, place)
        return self.head(self.norm(x_B1D[:, 0])), State(sources, is_token_B11S, said, length + 1)


def build(
    spec: DataSpec,
    *,
    depth: int = 3,
    heads: int = 4,
    width: int = 256,
    hidden: int | None = None,
    activation: Literal["relu", "gelu", "silu", "relu_squared", "swiglu"] = "relu",
    tied: bool = True,
    shared: bool = False,
    dropout: float = 0.1,
) -> nn.Module:
    """The encoder and decoder of Vaswani et al. 2017, "Attention Is All You Need", with the norm before each part
    (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"), which needs no warm-up to be stable.

    With e(w) = sqrt(D) E w + sinusoids, the encoder's x and the decoder's y pass L blocks each:
        x <- x + Self(norm x);    x <- x + FeedForward(norm x);    m = norm(x_L)
        y <- y + Causal(norm y);  y <- y + Cross(norm y, m);  y <- y + FeedForward(norm y);  logits = W norm(y_L) + b

    Settings:
    depth: number of blocks in the encoder and in the decoder, at least 1
    heads: attention heads, a divisor of width
    width: of embeddings and of what runs from block to block
    hidden: units of each feed-forward layer; null for 4 x width, or with swiglu 8/3 x width
    activation: of the feed-forward layers; swiglu has a gate, and a third matrix
    tied: the head's weights are those of the target's embedding (Press and Wolf 2017)
    shared: source and target have one embedding; needs one vocabulary
    dropout: share of embeddings, attention and what each part adds, set to zero while training, in [0, 1)
    """
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    _transformer.check_heads(width, heads)
    units = _transformer.hidden_width(hidden, width, activation)
    source, target = _embeddings(spec, width, shared)
    encoder = Encoder(
        Embedded(source, None, dropout),
        [EncoderBlock(width, heads, units, activation, "layer", True, dropout) for _ in range(depth)],
        nn.LayerNorm(width),
    )
    blocks = [DecoderBlock(width, heads, units, activation, dropout) for _ in range(depth)]
    head = nn.Linear(width, target.num_embeddings)
    room = spec.size("target_length")
    model = Transformer(encoder, Embedded(target, None, dropout), blocks, nn.LayerNorm(width), head, room)
    _layers.initialise(model, "xavier", activation)
    if tied:
        model.head.weight = target.weight
    return model


def _embeddings(spec: DataSpec, width: int, shared: bool) -> tuple[nn.Embedding, nn.Embedding]:
    """Of source and target; one and the same where shared. Raises: DlrunError without a source, or two vocabularies."""
    if "source" not in spec.inputs:
        raise DlrunError(f"model: transformer needs a source; this data has {', '.join(spec.inputs)}", "model=gpt")
    source, target = spec.size("vocabulary"), spec.size("target_vocabulary")
    if shared and source != target:
        raise DlrunError(
            f"model.shared: source and target have vocabularies of {source} and {target}", "model.shared=false"
        )
    first = _text.embedding(source, width, width**-0.5)
    return first, first if shared else _text.embedding(target, width, width**-0.5)
