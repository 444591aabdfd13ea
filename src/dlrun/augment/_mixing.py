"""What mixup and cutmix share: shares drawn from a beta distribution, and the labels of mixed pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlrun.augment._checks import free_of_places
from dlrun.contracts import Batch, DataSpec
from dlrun.errors import DlrunError
from dlrun.randomness import Draws

_TRIES = 8  # each is accepted with probability above 0.95, so one in 10^10 gammas is an unaccepted one


def check(spec: DataSpec, name: str, alpha: float) -> None:
    """Raises DlrunError unless labels are classes of whole pictures, and alpha is a shape of a beta distribution."""
    free_of_places(spec, name)
    spec.size("classes")
    if not 0 < alpha <= 100:
        raise DlrunError(f"data.augment.{name}.alpha: {alpha} is not above 0 and at most 100")


def beta(draws: Draws, alpha: float) -> Tensor:
    """float32 [B] in [0, 1] from Beta(alpha, alpha): X / (X + Y) of two gammas, in logs as small ones underflow."""
    log_gamma_B2 = _log_gamma(draws, alpha)
    return torch.sigmoid(log_gamma_B2[:, 0] - log_gamma_B2[:, 1]).float()


def _log_gamma(draws: Draws, alpha: float) -> Tensor:
    """float64 [B, 2]: logarithms of Gamma(alpha) numbers.

    Source: Marsaglia and Tsang 2000, "A Simple Method for Generating Gamma Variables", for
    alpha + 1 >= 1; then Gamma(alpha) is Gamma(alpha + 1) * U^(1 / alpha), as they remark.
    """
    # The draws are k / 2^24: half a step more keeps them off 0, where the logarithm ends.
    u = draws.uniform(2, _TRIES, 3).double() + 2.0**-25
    d = alpha + 1 - 1 / 3
    normal = torch.sqrt(-2 * torch.log(u[..., 0])) * torch.cos(2 * math.pi * u[..., 1])
    v = (1 + normal / math.sqrt(9 * d)) ** 3
    log_v = torch.log(v.clamp(min=1e-300))
    is_accepted = (v > 0) & (torch.log(u[..., 2]) < normal**2 / 2 + d - d * v + d * log_v)
    first = is_accepted.to(torch.int8).argmax(-1, keepdim=True)
    boost = torch.log(draws.uniform(2).double() + 2.0**-25) / alpha
    return math.log(d) + log_v.gather(-1, first).squeeze(-1) + boost


def mixed(batch: Batch, image: Tensor, partners_B: Tensor, own_B: Tensor) -> Batch:
    """The batch with mixed pictures: "mix_label" is the partner's label, "mix" the weight of the own label."""
    return batch | {"image": image, "mix_label": batch["label"][partners_B], "mix": own_B}
