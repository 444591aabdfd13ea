"""Rows of different lengths, end to end in one tensor; a batch is padded to the longest of its own rows only."""

# N rows, M values, B rows of a batch, T the longest of them

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Batch


@dataclass(frozen=True)
class Ragged:
    """Rows that are stretches of one tensor, and may overlap.

    values: [M] whole numbers.   starts_N, lengths_N: int64, where each row begins and how long it is.
    padding: what stands after a row's last value.   dtype: of the padded batch.
    """

    values: Tensor
    starts_N: Tensor
    lengths_N: Tensor
    padding: int = 0
    dtype: torch.dtype = torch.int64

    @staticmethod
    def of(rows: Sequence[np.ndarray], padding: int = 0, dtype: torch.dtype = torch.int64) -> Ragged:
        """These rows, held in the type they have."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        values = torch.from_numpy(np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32))
        return Ragged(values, torch.from_numpy(np.cumsum(lengths) - lengths), torch.from_numpy(lengths), padding, dtype)

    def shortened(self, by: int) -> Ragged:
        """The rows without so many values at their end; the values are shared."""
        return replace(self, lengths_N=self.lengths_N - by)

    def shifted(self, by: int, padding: int) -> Ragged:
        """Rows of the same lengths that begin so many values later; the values are shared."""
        return replace(self, starts_N=self.starts_N + by, padding=padding)

    def take(self, rows: Tensor) -> Ragged:
        """Some of the rows; the values are shared."""
        return replace(self, starts_N=self.starts_N[rows], lengths_N=self.lengths_N[rows])

    def padded(self, rows_B: Tensor) -> Tensor:
        """[B, T] of the batch's type."""
        starts_B1, lengths_B1 = self.starts_N[rows_B, None], self.lengths_N[rows_B, None]
        longest = int(lengths_B1.max()) if len(rows_B) else 0
        places_T = torch.arange(longest)
        at_BT = starts_B1 + places_T
        if len(rows_B) == 0 or int(lengths_B1.min()) == longest:
            return self.values[at_BT].to(self.dtype)
        found_BT = self.values[at_BT.clamp_(max=len(self.values) - 1)].to(self.dtype)
        return found_BT.masked_fill_(places_T >= lengths_B1, self.padding)


class RaggedSplit:
    """Rows in memory, fixed fields as tensors, the others ragged. `lengths` is there if rows differ in length."""

    in_memory = True
    lengths: Tensor

    def __init__(self, fields: Mapping[str, Ragged | Tensor], lengths_N: Tensor | None = None) -> None:
        self.fields = dict(fields)
        if lengths_N is not None:
            self.lengths = lengths_N

    @property
    def num_tokens(self) -> int:
        """Of all rows, as `contracts.num_tokens` counts those of a batch."""
        texts = [self.fields[name] for name in ("source", "tokens") if name in self.fields]
        return sum(int(text.lengths_N.sum()) for text in texts if isinstance(text, Ragged))

    def __len__(self) -> int:
        return len(self.fields["id"].starts_N if isinstance(self.fields["id"], Ragged) else self.fields["id"])

    def gather(self, rows_B: Tensor) -> Batch:
        """The fields of these rows."""
        return {
            name: values.padded(rows_B) if isinstance(values, Ragged) else values[rows_B]
            for name, values in self.fields.items()
        }

    def take(self, rows: Tensor) -> RaggedSplit:
        """Some of the rows, as a split of their own."""
        fields = {
            name: values.take(rows) if isinstance(values, Ragged) else values[rows]
            for name, values in self.fields.items()
        }
        return RaggedSplit(fields, self.lengths[rows] if hasattr(self, "lengths") else None)
