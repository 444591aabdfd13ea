"""A few validation examples with truth and prediction, drawn into the run's figures at each evaluation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dlrun import pictures, runs
from dlrun.contracts import Batch, Dataset, Outputs, Task, WithPictures
from dlrun.training.evaluate import outputs_of
from dlrun.training.state import State

_KEPT = 20  # newest files, beside the first: a long run must not fill the disk
_PAGE = 1600  # pixels of a page's width, about the most that a screen shows


@dataclass
class ValidationPictures:
    """Draws the same examples each time, spread evenly over the split: neighbours are often alike, of one class or
    one film. Of the main rank only; changes nothing that training depends on, and never ends it.

    folder: where the files go; made when there is something to draw.   count: examples; 0 for none.
    note: told why nothing is drawn any more, once.
    """

    folder: Path
    data: Dataset
    task: Task
    state: State
    place: Callable[[Batch], Batch]
    count: int
    note: Callable[[str], None]
    _batch: Batch | None = field(default=None, init=False)
    _over: bool = field(default=False, init=False)

    def path(self, step: int) -> Path:
        """The file of an evaluation."""
        return self.folder / f"validation-{step:08d}.png"

    def after_evaluate(self, step: int, _values: dict[str, float]) -> bool:
        """Draw; a hook of the engine, which never asks to stop."""
        self.draw(step)
        return False

    def draw(self, step: int) -> None:
        """Write this step's file, with the weights one would use now, and delete the oldest but the first."""
        if self._over or not self._is_possible():
            return
        try:
            drawn = self._drawn()
            if not drawn:
                self._over = True
                return
            self.folder.mkdir(exist_ok=True)
            runs.write_atomically(self.path(step), pictures.png_bytes(page(drawn)))
            self._delete_old(self.path(step))
        except Exception as error:  # of a drawing, whatever it is: a training is worth more
            self._over = True
            reason = str(error).partition("\n")[0] or type(error).__name__
            self.note(f"warning: no more pictures of validation examples: {reason}")

    def _is_possible(self) -> bool:
        return self.count > 0 and isinstance(self.task, WithPictures) and "valid" in self.data.splits

    @torch.no_grad()
    def _drawn(self) -> list[Any]:
        """One image an example; [] if there is none to draw."""
        assert isinstance(self.task, WithPictures)
        batch = self._batch = self._examples() if self._batch is None else self._batch
        if not len(batch["id"]):
            return []
        device = self.state.world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            prepared = self.data.inputs.prepare(self.place(batch))
            [outputs] = outputs_of(self.state.weights, self.task, iter([prepared]), self.state.precision)
        fields = {name: value.cpu() for name, value in outputs.fields.items()}
        return self.task.pictures(batch, Outputs(outputs.ids.cpu(), fields))

    def _examples(self) -> Batch:
        split = self.data.split("valid")
        count = min(self.count, len(split))
        return split.gather(torch.arange(count) * len(split) // max(1, count))

    def _delete_old(self, written: Path) -> None:
        others = sorted(path for path in self.folder.glob("validation-*.png") if path != written)
        for path in others[1 : max(1, len(others) - _KEPT + 1)]:
            with contextlib.suppress(OSError):
                path.unlink()


def page(images: Sequence[Any]) -> Any:
    """One page of all images: about as high as wide for small ones, two columns at least, no wider than a screen."""
    widest = min(max(image.width for image in images), _PAGE // 2)
    images = [pictures.fitted(image, widest) for image in images]
    highest = max(image.height for image in images)
    columns = round(math.sqrt(len(images) * highest / widest))
    return pictures.grid(images, max(1, min(len(images), max(columns, 2), _PAGE // widest)))
