"""Attention of a recurrent decoder on what an encoder read: Bahdanau's (additive) and Luong's (general)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

# B batch, S places of the source, M width of the memory, A width of the attention, H units of the decoder


class Memory(NamedTuple):
    """A source as it was read: states [B, S, M], their keys [B, S, A], and which places are tokens, bool [B, S]."""

    states: Tensor
    keys: Tensor
    is_token: Tensor

    def weighted(self, scores_BS: Tensor) -> Tensor:
        """[B, M]: sum over tokens s of softmax(scores)_s states_s."""
        weights_BS = scores_BS.masked_fill(~self.is_token, float("-inf")).softmax(dim=1)
        return torch.bmm(weights_BS[:, None], self.states)[:, 0]


class Bahdanau(nn.Module):
    """score_s = v · tanh(W q + U m_s) with the query q, [B, H], and m_s the memory's states.

    Source: Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate", A.1.2.
    """

    def __init__(self, query: int, memory: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Linear(memory, width)
        self.query = nn.Linear(query, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def remember(self, states_BSM: Tensor, is_token_BS: Tensor) -> Memory:
        """The memory with its keys, U m_s, which no query changes."""
        return Memory(states_BSM, self.keys(states_BSM), is_token_BS)

    def forward(self, query_BH: Tensor, memory: Memory) -> Tensor:
        """The context [B, M]."""
        mixed_BSA = (self.query(query_BH)[:, None] + memory.keys).tanh()
        return memory.weighted(self.score(mixed_BSA)[..., 0])


class Luong(nn.Module):
    """score_s = q · W m_s.

    Source: Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", eq. 8, "general".
    """

    def __init__(self, query: int, memory: int) -> None:
        super().__init__()
        self.keys = nn.Linear(memory, query, bias=False)

    def remember(self, states_BSM: Tensor, is_token_BS: Tensor) -> Memory:
        """The memory with its keys, W m_s, which no query changes."""
        return Memory(states_BSM, self.keys(states_BSM), is_token_BS)

    def forward(self, query_BH: Tensor, memory: Memory) -> Tensor:
        """The context [B, M]."""
        return memory.weighted(torch.bmm(memory.keys, query_BH[..., None])[..., 0])
