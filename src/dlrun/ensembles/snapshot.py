"""A snapshot ensemble: one training whose learning rate falls and rises again; its low points, averaged."""

from __future__ import annotations

from dataclasses import dataclass

from dlrun.config.durations import Duration
from dlrun.contracts import DataSpec
from dlrun.ensembles._fields import Mean
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, cycles: int = 5) -> Snapshot:
    """The members are trained here, for what one training costs: a checkpoint at the end of every cycle.

    Settings:
        cycles: falls of the learning rate, and members, at least 2

    Source: Huang et al. 2017, "Snapshot Ensembles: Train 1, Get M for Free".
    """
    if cycles < 2:
        raise DlrunError(f"ensemble.cycles: {cycles} is not at least 2", "try ensemble.cycles=5")
    return Snapshot(Mean(), cycles)


@dataclass(frozen=True)
class Snapshot(Average):
    """See `build`."""

    checkpoints: int

    def trainings(self, seed: int, duration: str) -> list[list[str]]:
        """The one. Raises: DlrunError for a duration that cannot be cut into cycles."""
        whole = Duration.parse(duration)
        length = whole.value / self.checkpoints
        if whole.unit not in ("epochs", "steps"):
            raise DlrunError(
                f"ensemble=snapshot: train.duration='{duration}' cannot be cut into cycles",
                'say it in epochs or steps: train.duration="10 epochs"',
            )
        if whole.unit == "steps" and not length.is_integer():
            raise DlrunError(
                f"ensemble=snapshot: {duration} are not {self.checkpoints} cycles of whole steps",
                f'train.duration="{max(1, round(length)) * self.checkpoints} steps"',
            )
        every = f"'{length:.10g} {whole.unit}'"
        return [
            ["schedule=cyclic", f"schedule.cycles={self.checkpoints}", f"train.save_every={every}",
             f"train.keep={self.checkpoints}"]
        ]  # fmt: skip
