"""Why nothing can be trained from the weights of a compressed run, or how it can be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dlrun import runs
from dlrun.errors import DlrunError

_NOT_TRAINED = (torch.int8, torch.uint8, torch.float16, torch.bfloat16)


def require_plain(run: runs.Run, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises: DlrunError where a compressed run's tensors are not those of the model that its config names."""
    if {name: tensor.shape for name, tensor in wanted.items()} == {n: tensor.shape for n, tensor in tensors.items()}:
        return
    if any(_is_kept_small(name, tensors) for name in tensors):
        raise DlrunError(
            f"run {run.short_id} does not keep its weights as floats: nothing can be trained from them",
            f"start from a run before it: dlrun lineage {run.short_id}",
        )
    raise DlrunError(
        f"run {run.short_id} was compressed into another shape: its weights fit no model that a config names",
        f"train it on as it is: dlrun compress {run.short_id} compression=finetune",
    )


def _is_kept_small(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a weight is stored in fewer bits; numbers of a codebook's values are no such, for the values train."""
    has_values = name.removesuffix("original0") + "0.values" in tensors
    return tensors[name].dtype in _NOT_TRAINED and not has_values
