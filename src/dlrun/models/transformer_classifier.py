"""A small BERT: a transformer encoder for classes of a text, or for its hidden tokens where the data has no classes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _text, _transformer
from dlrun.models._encoder import Embedded, Encoder, EncoderBlock

# B batch, T places, D width, K classes, V vocabulary


class Classifier(nn.Module):
    """An encoder, its outputs pooled, and a linear head."""

    def __init__(self, encoder: Encoder, pooling: str, dropout: float, head: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, K]."""
        is_token_BT = _text.is_token(tokens_BT, lengths_B)
        x_BTD = self.encoder(tokens_BT, is_token_BT)
        pooled = x_BTD[:, 0] if self.pooling == "cls" else _text.pooled(x_BTD, is_token_BT, self.pooling)
        return self.head(self.dropout(pooled))


class MaskedLanguage(nn.Module):
    """The same encoder with a head over the vocabulary at every place; the head's weights are the embedding's."""

    def __init__(self, encoder: Encoder, head: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the token that was hidden at each place. Windows of a text come without lengths."""
        lengths_B = _text.lengths_of(tokens_BT) if lengths_B is None else lengths_B
        return self.head(self.encoder(tokens_BT, _text.is_token(tokens_BT, lengths_B)))


def build(
    spec: DataSpec,
    *,
    depth: int = 4,
    heads: int = 4,
    width: int = 128,
    hidden: int | None = None,
    pooling: Literal["mean", "cls", "max"] = "mean",
    positions: Literal["learned", "sinusoidal"] = "learned",
    norm: Literal["layer", "rms"] = "layer",
    activation: Literal["gelu", "relu", "silu", "relu_squared", "swiglu"] = "gelu",
    bias: bool = True,
    dropout: float = 0.1,
    init_std: float = 0.02,
) -> nn.Module:
    """The encoder of Vaswani et al. 2017, as BERT uses it (Devlin et al. 2019), with the norm before each part.

    With e the embeddings of tokens and positions and L blocks:
        x_0 = e;   y_l = x_l + Attention(norm(x_l));   x_l+1 = y_l + FeedForward(norm(y_l))
        logits = W pool(norm(x_L)) + b, or W norm(x_L) + b at every place where the data has no classes
    A classifier takes the encoder's weights of a run on hidden tokens: transfer=finetune transfer.from=run:<id>.

    Settings:
    depth: number of blocks, at least 1
    heads: attention heads, a divisor of width
    width: of embeddings and of what runs from block to block
    hidden: units of each feed-forward layer; null for 4 x width, or with swiglu 8/3 x width
    pooling: the mean or the maximum over the tokens, or cls: what comes out at the first of them
    positions: an embedding for each position, or sinusoids, which have no last one
    norm: layer, or rms, which scales and does not centre
    activation: of the feed-forward layers; swiglu has a gate, and a third matrix
    bias: whether linear layers and layer norms add one
    dropout: share of embeddings, attention, what each part adds and of pooled features set to 0 in training, in [0, 1)
    init_std: standard deviation of the first weights
    """
    vocabulary = spec.size("vocabulary")
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    _layers.require(init_std > 0, "init_std", init_std, "a number above 0")
    _transformer.check_heads(width, heads)
    units = _transformer.hidden_width(hidden, width, activation)
    places = nn.Embedding(_length(spec), width) if positions == "learned" else None
    blocks = [EncoderBlock(width, heads, units, activation, norm, bias, dropout) for _ in range(depth)]
    embedded = Embedded(nn.Embedding(vocabulary, width), places, dropout)
    encoder = Encoder(embedded, blocks, _transformer.norm(norm, width, bias))
    if spec.sizes.keys() & {"classes", "labels", "targets"}:
        model: nn.Module = Classifier(encoder, pooling, dropout, nn.Linear(width, spec.num_outputs))
    else:
        model = MaskedLanguage(encoder, nn.Linear(width, vocabulary))
        model.head.weight = embedded.tokens.weight
    _transformer.initialise(model, init_std, residual_layers=2 * depth)
    if positions == "sinusoidal":
        nn.init.normal_(embedded.tokens.weight, std=width**-0.5)
    return model


def _length(spec: DataSpec) -> int:
    """Places of the longest text: that of texts with classes, or of a window."""
    return spec.sizes["length"] if "length" in spec.sizes else spec.size("context")
