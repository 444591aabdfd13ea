"""A text in few words."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import DataSpec, Goal
from dlrun.metrics.text import Rouge, require
from dlrun.tasks import _texts, _token_losses
from dlrun.tasks._sequence import SequenceTask


def build(
    spec: DataSpec,
    *,
    label_smoothing: float = 0.1,
    beams: int = 4,
    length_penalty: float = 1.0,
    no_repeat: int = 3,
    max_tokens: int | None = None,
    goal: Literal["loss", "rougeL"] = "loss",
) -> SequenceTask:
    """Cross-entropy of each next token of the summary; ROUGE of what beam search finds, and of the lead sentence.

    Settings:
        label_smoothing: share of the target spread over the vocabulary while training, 0 to below 1
        beams: hypotheses kept while a summary is searched; 1 takes the likeliest token each time
        length_penalty: alpha of beam search, from 0 (short ones win) to about 1 (longer is no worse)
        no_repeat: no sequence of so many tokens is said twice; 0 for no such limit
        max_tokens: of a summary; the longest target the data was cut to unless set
        goal: loss, where ROUGE is counted once at the end, or rougeL, where texts are said at each evaluation
    """
    _token_losses.check_smoothing(label_smoothing)
    vocabulary, longest = spec.size("target_vocabulary"), spec.size("target_length")
    require("task=summarization", "rouge_score")
    generation = _texts.generation_of(
        max_tokens=longest if max_tokens is None else max_tokens, beams=beams, length_penalty=length_penalty,
        no_repeat=no_repeat,
    )  # fmt: skip
    wanted = Goal("rougeL", "max") if goal == "rougeL" else Goal("loss", "min")
    generates = goal == "rougeL"
    return SequenceTask(
        spec, vocabulary, label_smoothing, generation, wanted, lambda: [Rouge()], generates, with_lead=True
    )
