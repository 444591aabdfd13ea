"""A Dataset of pictures that were made, not found: fields in memory, and which of their rows are which split's."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dlrun.contracts import Dataset, DataSpec, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._held import MemorySplit
from dlrun.data._inputs import make_inputs
from dlrun.data._statistics import measured


def made_dataset(
    tools: Tools,
    fields: Mapping[str, np.ndarray],
    parts: Mapping[str, np.ndarray],
    draft: DataSpec,
    notes: Sequence[str],
) -> Dataset:
    """The splits of these rows.

    fields: "image" and the others, without "id".   draft: the spec but for mean and std.
    """
    held = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in fields.items()}
    held["id"] = torch.arange(len(held["image"]))
    ordered = {name: parts[name] for name in ("train", "valid", "test") if name in parts}
    splits = {name: MemorySplit(held, torch.from_numpy(rows)) for name, rows in ordered.items()}
    spec = spec_of(tools)
    if spec is None:
        moments, _ = measured(splits["train"], "image", 0)
        spec = dataclasses.replace(draft, assets=draft.assets | {"mean": moments.mean, "std": moments.std})
    digest = hashlib.blake2b(digest_size=16)
    for name, values in sorted(held.items()):
        digest.update(name.encode() + values.numpy().tobytes())
    for name, rows in ordered.items():
        digest.update(name.encode() + rows.tobytes())
    return Dataset(spec, dict(splits), make_inputs(spec), tuple(notes), digest.hexdigest())
