"""A chat run against an interpolated trigram model: perplexity of the answers of the test split, on the same tokens.

python benchmarks/chat_trigram.py RUN [--runs runs]

The trigram counts the tokens of the training conversations. Its four weights (trigram, bigram, unigram, uniform) are
fitted on the validation split by expectation maximisation (Jelinek and Mercer 1980).
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dlrun import predictor, runs
from dlrun.contracts import NO_TARGET


def conversations(split) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of each example and, place by place, what is to be said next (NO_TARGET where nothing counts)."""
    for row in range(len(split)):
        batch = split.gather(torch.tensor([row]))
        yield batch["tokens"][0].tolist(), batch["targets"][0].tolist()


class Trigram:
    """p(c | a b) = w3 n(abc)/n(ab) + w2 n(bc)/n(b) + w1 n(c)/n + w0 / V."""

    def __init__(self, texts: Sequence[Sequence[int]], vocabulary: int) -> None:
        self.vocabulary, self.weights = vocabulary, [0.25] * 4
        self.counts: list[Counter] = [Counter(), Counter(), Counter()]
        self.contexts: list[Counter] = [Counter(), Counter(), Counter()]
        for text in texts:
            for place, token in enumerate(text):
                for order in range(min(3, place + 1)):
                    context = tuple(text[place - order : place])
                    self.counts[order][(*context, token)] += 1
                    self.contexts[order][context] += 1

    def parts(self, before: Sequence[int], token: int) -> list[float]:
        """The probability of a token by each of the four."""
        found = [1 / self.vocabulary]
        for order in range(3):
            context = tuple(before[len(before) - order :]) if order else ()
            total = self.contexts[order][context]
            found.append(self.counts[order][(*context, token)] / total if total else 0.0)
        return found

    def fit(self, places: Sequence[list[float]], rounds: int = 20) -> None:
        """The weights under which these are likeliest."""
        for _ in range(rounds):
            shares = [0.0] * 4
            for parts in places:
                each = [weight * part for weight, part in zip(self.weights, parts, strict=True)]
                total = sum(each)
                shares = [share + one / total for share, one in zip(shares, each, strict=True)]
            self.weights = [share / len(places) for share in shares]

    def perplexity(self, places: Sequence[list[float]]) -> float:
        """Of the tokens whose parts these are."""
        logs = [math.log(sum(w * p for w, p in zip(self.weights, parts, strict=True))) for parts in places]
        return math.exp(-sum(logs) / len(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    model = predictor.load(runs.find(given.runs, given.run).folder)
    data = {name: list(conversations(split)) for name, split in model.dataset.splits.items()}
    trigram = Trigram([_whole(*pair) for pair in data["train"]], model.spec.size("vocabulary"))
    places = {
        name: [
            trigram.parts(tokens[: place + 1], target)
            for tokens, targets in data[name]
            for place, target in enumerate(targets)
            if target != NO_TARGET
        ]
        for name in ("valid", "test")
    }
    trigram.fit(places["valid"])
    loss = model.evaluate("test")["loss"]
    print(f"tokens of answers in test      {len(places['test'])}")
    print(f"interpolated trigram           {trigram.perplexity(places['test']):.3f}")
    print(f"run {given.run:<27}{math.exp(loss):.3f}")


def _whole(tokens: list[int], targets: list[int]) -> list[int]:
    """The conversation with its last answer's end; padding, which is never read or said, is left out."""
    last = max((place for place, target in enumerate(targets) if target != NO_TARGET), default=-1)
    return [*tokens[: last + 1], targets[last]] if last >= 0 else []


if __name__ == "__main__":
    main()
