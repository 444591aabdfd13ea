"""Connectionist temporal classification: what a row of labels and blanks says, by greedy and by prefix beam search."""

# B batch, T frames, K labels (0 is the blank)

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

_UNLIKELY = 1e-4  # a label less probable than this in a frame is not tried there


def greedy(log_probs_BTK: Tensor, lengths_B: Tensor) -> list[list[int]]:
    """The likeliest label of each frame, repeats put together and blanks left out."""
    found = []
    for labels, length in zip(log_probs_BTK.argmax(2).tolist(), lengths_B.tolist(), strict=True):
        found.append([label for label, _ in itertools.groupby(labels[:length]) if label])
    return found


def beam_search(log_probs_BTK: Tensor, lengths_B: Tensor, beams: int) -> list[list[int]]:
    """The likeliest sequence over all its alignments, as far as so many prefixes show it.

    Source: Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
    Recurrent DNNs", algorithm 1, without a language model.
    """
    rows = log_probs_BTK.float().cpu()
    return [_prefixes(row[:length], beams) for row, length in zip(rows, lengths_B.tolist(), strict=True)]


def _prefixes(log_probs_TK: Tensor, beams: int) -> list[int]:
    """The best prefix after the last frame. Each prefix has two log-probabilities: of ending in a blank, or not."""
    prefixes: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs_TK:
        tried = torch.nonzero(frame > math.log(_UNLIKELY)).flatten().tolist()
        scores = frame.tolist()
        after: dict[tuple[int, ...], list[float]] = {}
        for prefix, (blank, label) in prefixes.items():
            total = _add(blank, label)
            for index in tried or [int(frame.argmax())]:
                score = scores[index]
                if index == 0:
                    _gain(after, prefix, 0, total + score)
                elif prefix and prefix[-1] == index:
                    _gain(after, prefix, 1, label + score)  # the same sound goes on
                    _gain(after, (*prefix, index), 1, blank + score)  # it is said again after a blank
                else:
                    _gain(after, (*prefix, index), 1, total + score)
        best = sorted(after.items(), key=lambda item: -_add(*item[1]))[:beams]
        prefixes = {prefix: (blank, label) for prefix, (blank, label) in best}
    return list(max(prefixes.items(), key=lambda item: _add(*item[1]))[0])


def _gain(after: dict[tuple[int, ...], list[float]], prefix: tuple[int, ...], kind: int, score: float) -> None:
    scores = after.setdefault(prefix, [-math.inf, -math.inf])
    scores[kind] = _add(scores[kind], score)


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
