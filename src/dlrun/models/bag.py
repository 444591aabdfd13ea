"""Bag of embeddings: the mean of a text's word vectors, then a linear head; fast, and hard to beat on topics."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _text

# B batch, T places, D width, K classes


class Bag(nn.Module):
    """An embedding, pooled over the tokens, hidden layers where there are any, and a linear head."""

    def __init__(
        self, tokens: nn.Embedding, pooling: str, word_dropout: float, hidden: list[nn.Module], head: nn.Linear
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.pooling, self.word_dropout = pooling, word_dropout
        self.hidden = nn.Sequential(*hidden)
        self.head = head

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, K]."""
        is_token_BT = _text.is_token(tokens_BT, lengths_B)
        if self.training and self.word_dropout:
            is_token_BT = self._some(is_token_BT)
        return self.head(self.hidden(_text.pooled(self.tokens(tokens_BT), is_token_BT, self.pooling)))

    def _some(self, is_token_BT: Tensor) -> Tensor:
        """Without a share of the tokens; the one with the luckiest draw always stays."""
        luck_BT = torch.rand(is_token_BT.shape, device=is_token_BT.device).masked_fill(~is_token_BT, -1.0)
        return is_token_BT & ((luck_BT >= self.word_dropout) | (luck_BT == luck_BT.amax(1, keepdim=True)))


def build(
    spec: DataSpec,
    *,
    width: int = 128,
    pooling: Literal["mean", "sum", "max"] = "mean",
    widths: tuple[int, ...] = (),
    activation: Literal[
        "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
    ] = "relu",
    word_dropout: float = 0.0,
    dropout: float = 0.0,
    embedding_std: float = 0.1,
) -> nn.Module:
    """The order of words is thrown away: with e_t the embedding of token t of a text of n tokens,
        h = (1/n) (e_1 + … + e_n);   logits = W h + b
    as in Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification", section 2 (without its n-grams). With
    hidden layers between h and the head, and words left out, it is the deep averaging network of Iyyer et al. 2015.

    Settings:
    width: of the embeddings, at least 1
    pooling: mean of the tokens' vectors, their sum, or the largest of each entry
    widths: units of each hidden layer, one number a layer, e.g. [300,300]
    activation: after every hidden layer
    word_dropout: share of the tokens left out while training, in [0, 1); Iyyer et al. take 0.3
    dropout: share of pooled and hidden features set to zero while training, in [0, 1)
    embedding_std: standard deviation of the first embeddings
    """
    _layers.require(0 <= word_dropout < 1, "word_dropout", word_dropout, "a number in [0, 1)")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    tokens = _text.embedding(spec.size("vocabulary"), width, embedding_std)
    sizes = (width, *_layers.positive_integers("widths", widths))
    hidden: list[nn.Module] = [nn.Dropout(dropout)]
    for before, after in pairwise(sizes):
        hidden += [nn.Linear(before, after), _layers.activation(activation), nn.Dropout(dropout)]
    model = Bag(tokens, pooling, word_dropout, hidden, nn.Linear(sizes[-1], spec.num_outputs))
    return _layers.initialise(model, "kaiming", activation)
