"""Metrics of transcripts: word and character error rates, as jiwer counts them."""

# N examples of the outputs

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor

from dlrun.contracts import Outputs
from dlrun.errors import DlrunError
from dlrun.metrics.reduce import Sums
from dlrun.tokens import to_texts


def require_jiwer(what: str) -> None:
    """Raises: DlrunError with the line that installs jiwer, where it is missing."""
    if importlib.util.find_spec("jiwer") is None:
        raise DlrunError(f"{what} needs jiwer", 'pip install "dlrun[audio]"')


class ErrorRates:
    """wer and cer: substitutions, deletions and insertions of all texts together, over the words or characters of the
    true ones (0 is perfect, and above 1 there are more errors than words); loss (of a character, in nats).

    Reads text and reference, uint8 [N, L] (see tokens.to_bytes), loss [N] (the sum over an example's characters) and
    num_targets [N]; outputs without a reference count for nothing.
    """

    def __init__(self) -> None:
        require_jiwer("the word error rate")
        self._sums = Sums(6)  # characters, loss, word errors, words, character errors, characters of references

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums."""
        if not {"text", "reference", "loss"} <= outputs.fields.keys():
            return
        texts, truths = (to_texts(outputs.fields[name]) for name in ("text", "reference"))
        sums = [float(outputs.fields[name].detach().double().sum()) for name in ("num_targets", "loss")]
        self._sums.add(torch.tensor([*sums, *_errors(truths, texts)], dtype=torch.float64))

    def state(self) -> list[Tensor]:
        """The sums, [6]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        targets, loss, word_errors, words, errors, characters = self._sums.on_cpu().tolist()

        def share(part: float, whole: float) -> float:
            return part / whole if whole else math.nan

        return {"loss": share(loss, targets), "wer": share(word_errors, words), "cer": share(errors, characters)}


def _errors(truths: list[str], texts: list[str]) -> list[float]:
    """Errors in words, words, errors in characters, characters."""
    import jiwer

    found: list[float] = []
    for process in (jiwer.process_words, jiwer.process_characters):
        said = process(truths, texts)
        found += [
            said.substitutions + said.deletions + said.insertions,
            said.hits + said.substitutions + said.deletions,
        ]
    return found
