"""Several models in one: members share every weight matrix, and each has two vectors of its own beside it."""

# B batch, M members, R rows of the shared computation, K outputs

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.copies import Kind, kind_of, mean_of
from dlrun.models import _layers


def several(model: nn.Module, members: int, spec: DataSpec) -> nn.Module:
    """The model itself, or its weights shared by so many members.

    Source: Wen et al. 2020, "BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong Learning",
    section 3.1.
    """
    _layers.require(members >= 1, "members", members, "an integer of at least 1")
    if members == 1:
        return model
    return Members(model, members, kind_of(spec))


class Shared(nn.Module):
    """A layer whose weight W is that of member m times the outer product of its vectors r_m and s_m.

    y = r_m (W (x s_m) + b), products by element; row i belongs to member i mod M.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, members: int) -> None:
        super().__init__()
        self.layer = layer
        self.of_pixels = isinstance(layer, nn.Conv2d)  # said here: a compression may put other layers in its place
        sizes = (layer.weight.shape[1] * getattr(layer, "groups", 1), layer.weight.shape[0])
        # Random signs set the members apart (as in the paper); all begin with weights of the size the layer was given.
        self.s_MI, self.r_MO = (nn.Parameter(2.0 * torch.randint(2, (members, size)) - 1) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """[R, …] as the layer's own."""
        members_R = torch.arange(x.shape[0], device=x.device) % len(self.s_MI)
        s, r = self.s_MI[members_R], self.r_MO[members_R]
        if self.of_pixels:
            s, r = s[:, :, None, None], r[:, :, None, None]
        return self.layer(x * s.to(x.dtype)) * r.to(x.dtype)

    def member(self, index: int) -> nn.Module:
        """The layer of one member, with weights of its own."""
        layer, s_I, r_O = deepcopy(self.layer), self.s_MI[index].detach(), self.r_MO[index].detach()
        shape = (-1,) + (1,) * (layer.weight.dim() - 1)
        groups = getattr(layer, "groups", 1)
        s_OI = s_I.view(groups, 1, -1).expand(groups, len(r_O) // groups, -1).reshape(len(r_O), -1)
        with torch.no_grad():
            layer.weight.mul_(r_O.view(shape)).mul_(s_OI.view(*s_OI.shape, *shape[2:]))
            if layer.bias is not None:
                layer.bias.mul_(r_O)
        return layer


class Members(nn.Module):
    """A model whose linear and convolution layers are shared. Norms are one for all members.

    While it trains, the members share out the rows of a batch, so a step costs what it costs one model; asked, each
    of them sees every row, and the mean is said.
    """

    def __init__(self, model: nn.Module, members: int, kind: Kind) -> None:
        super().__init__()
        self.model, self.members = model, members
        self.kind: Kind = kind
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear | nn.Conv2d):
                    setattr(parent, name, Shared(child, members))

    def forward(self, x: Tensor) -> Tensor:
        """[B, …] to logits, or numbers, [B, K]; in eval mode those of the mean of probabilities."""
        if self.training:
            return self.model(x)
        said_BMK = self.model(x.repeat_interleave(self.members, 0)).unflatten(0, (-1, self.members))
        return mean_of(said_BMK, self.kind)

    def member(self, index: int) -> nn.Module:
        """One member as a model of the usual layers."""
        alone = deepcopy(self.model)
        for parent in list(alone.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Shared):
                    setattr(parent, name, child.member(index))
        return alone
