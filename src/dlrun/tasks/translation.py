"""A text in another language."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import DataSpec, Goal, Metric
from dlrun.metrics.text import Translation, require
from dlrun.tasks import _texts, _token_losses
from dlrun.tasks._sequence import SequenceTask


def build(
    spec: DataSpec,
    *,
    label_smoothing: float = 0.1,
    beams: int = 4,
    length_penalty: float = 0.6,
    max_tokens: int | None = None,
    goal: Literal["loss", "bleu"] = "loss",
) -> SequenceTask:
    """Cross-entropy of each next token of the translation; BLEU and chrF of what beam search finds.

    A vocabulary of small letters (data.lower) is scored without regard to capitals, as sacrebleu's signature then says.

    Settings:
        label_smoothing: share of the target spread over the vocabulary while training, 0 to below 1
        beams: hypotheses kept while a translation is searched; 1 takes the likeliest token each time
        length_penalty: alpha of beam search, from 0 (short ones win) to about 1 (longer is no worse)
        max_tokens: of a translation; the longest target the data was cut to unless set
        goal: loss, where BLEU is counted once at the end, or bleu, where texts are said at each evaluation
    """
    _token_losses.check_smoothing(label_smoothing)
    vocabulary, longest = spec.size("target_vocabulary"), spec.size("target_length")
    require("task=translation", "sacrebleu")
    generation = _texts.generation_of(
        max_tokens=longest if max_tokens is None else max_tokens, beams=beams, length_penalty=length_penalty
    )
    wanted = Goal("bleu", "max") if goal == "bleu" else Goal("loss", "min")
    generates = goal == "bleu"

    def scores() -> list[Metric]:
        return [Translation(lowercase=_texts.target_tokenizer(spec).lowers)]

    return SequenceTask(spec, vocabulary, label_smoothing, generation, wanted, scores, generates)
