"""LightGCN: vectors of users and items, averaged over the graph of their interactions (He et al. 2020)."""

# B batch, D width, U users, I items, E interactions

from __future__ import annotations

import torch
from safetensors.torch import load
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _recommender

_LOG = "interactions.safetensors"  # of the data's files: every user's items, and which are trained on


class LightGcn(nn.Module):
    """The mean over layers of E, A E, A A E …, where A is the symmetrically normalised graph; products of those."""

    edges: Tensor
    weights: Tensor

    def __init__(self, given: _recommender.Facts, edges: Tensor, width: int, depth: int, std: float) -> None:
        super().__init__()
        self.depth, self.num_users = depth, given.num_users
        self.users = _recommender.embedding(given.num_users, width, std)
        self.items = _recommender.embedding(given.num_items, width, std)
        self.num_nodes = given.num_users + given.num_items + 2
        degrees = torch.bincount(edges[0], minlength=self.num_nodes).double()
        weights = (degrees[edges[0]] * degrees[edges[1]]).rsqrt().float()
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, user_B: Tensor, history_BT: Tensor, items: Tensor) -> Tensor:
        """Scores in the form of items: [B, C], [B, T, C], or [I] (then [B, I]). The history is not looked at."""
        users, all_items = self.spread()
        return _recommender.products(users[user_B], all_items[items], items)

    def spread(self) -> tuple[Tensor, Tensor]:
        """Vectors of users [U + 1, D] and items [I + 1, D] after all layers."""
        shape = (self.num_nodes, self.num_nodes)
        graph = torch.sparse_coo_tensor(self.edges, self.weights, shape, check_invariants=False, is_coalesced=True)
        layer = torch.cat([self.users.weight, self.items.weight])
        total = layer
        for _ in range(self.depth):
            layer = torch.sparse.mm(graph, layer)
            total = total + layer
        mean = total / (self.depth + 1)
        return mean[: self.num_users + 1], mean[self.num_users + 1 :]


def build(spec: DataSpec, *, width: int = 64, depth: int = 3, std: float = 0.1) -> nn.Module:
    """LightGCN on the training interactions.

    Settings:
    width: numbers of a vector, at least 1
    depth: how many steps of the graph are taken, at least 0
    std: deviation that vectors start with, above 0
    """
    _recommender.check_width(width)
    _layers.require(depth >= 0, "depth", depth, "an integer of at least 0")
    _layers.require(std > 0, "std", std, "a number above 0")
    given = _recommender.facts(spec)
    return LightGcn(given, graph(spec, given.num_users), width, depth, std)


def graph(spec: DataSpec, num_users: int) -> Tensor:
    """int64 [2, 2 E], sorted: from users (0..U) to items (U + 1 + id) and back, each pair once."""
    log = load(spec.files[_LOG])
    user = torch.repeat_interleave(torch.arange(len(log["starts"]) - 1), log["starts"].diff())
    trained = log["is_train"].bool()
    user, item = user[trained], log["item"][trained].long() + num_users + 1
    both = torch.stack([torch.cat([user, item]), torch.cat([item, user])])
    return both.unique(dim=1)
