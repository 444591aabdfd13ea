"""Kim's convolutional network for sentences: filters over a few words each, and the strongest answer of each filter."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _text

# B batch, T places, D width, F filters of a size, K classes


class TextCnn(nn.Module):
    """An embedding, convolutions of several sizes side by side, a maximum over time, and a linear head."""

    def __init__(
        self,
        tokens: nn.Embedding,
        convolutions: list[nn.Conv1d],
        activation: nn.Module,
        dropout: float,
        head: nn.Linear,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.convolutions = nn.ModuleList(convolutions)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, K]."""
        is_token_BT = _text.is_token(tokens_BT, lengths_B)
        x_BDT = self.tokens(tokens_BT).masked_fill(~is_token_BT[..., None], 0.0).transpose(1, 2)
        features = [self._strongest(layer, x_BDT, lengths_B) for layer in self.convolutions]
        return self.head(self.dropout(torch.cat(features, dim=1)))

    def _strongest(self, convolution: nn.Module, x_BDT: Tensor, lengths_B: Tensor) -> Tensor:
        """[B, F]: the largest answer over all windows that hold at least one token."""
        y_BFW = convolution(x_BDT)
        overlap = y_BFW.shape[2] - x_BDT.shape[2]  # windows that begin before the text
        is_window_BW = _text.is_token(y_BFW[:, 0], lengths_B.clamp(min=1) + overlap)
        # An activation that never falls may as well come after the maximum, where it has far less to do.
        return self.activation(_text.pooled(y_BFW.transpose(1, 2), is_window_BW, "max"))


def build(
    spec: DataSpec,
    *,
    width: int = 128,
    kernels: tuple[int, ...] = (3, 4, 5),
    filters: int = 100,
    activation: Literal["relu", "leaky_relu", "elu", "selu", "softplus", "tanh", "sigmoid"] = "relu",
    dropout: float = 0.5,
    embedding_std: float = 0.1,
    init: Literal["kaiming", "xavier", "orthogonal", "lecun", "default"] = "kaiming",
) -> nn.Module:
    """The network of Kim 2014, "Convolutional Neural Networks for Sentence Classification", section 2.

    A filter w of size k answers at every window of k embeddings, and its strongest answer is a feature:
        c_i = f(w · e_i:i+k-1 + b);   c = max_i c_i;   logits = W dropout([c of every filter]) + b
    Beyond both ends of a text there are k - 1 zeros, as in the paper's code, so that each token meets every place of
    the filter. (The paper starts from word2vec, width 300, and limits the norm of W; here weight decay does that.)

    Settings:
    width: of the embeddings, at least 1
    kernels: sizes of filters in tokens, one number for each kind
    filters: number of filters of each size, at least 1
    activation: of the convolutions
    dropout: share of features set to zero before the head while training, in [0, 1)
    embedding_std: standard deviation of the first embeddings
    init: how the other weights start; default leaves them as torch made them
    """
    sizes = _layers.positive_integers("kernels", kernels)
    _layers.require(bool(sizes), "kernels", list(sizes), "at least one size")
    _layers.require(filters >= 1, "filters", filters, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    tokens = _text.embedding(spec.size("vocabulary"), width, embedding_std)
    convolutions = [nn.Conv1d(width, filters, size, padding=size - 1) for size in sizes]
    head = nn.Linear(filters * len(sizes), spec.num_outputs)
    model = TextCnn(tokens, convolutions, _layers.activation(activation), dropout, head)
    return _layers.initialise(model, init, activation)
