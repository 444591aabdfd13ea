"""Metrics of texts: perplexity and bits per byte, BLEU and chrF, ROUGE."""

# N examples of the outputs

from __future__ import annotations

import importlib.util
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from dlrun.contracts import Outputs
from dlrun.errors import DlrunError
from dlrun.metrics.reduce import Sums
from dlrun.tokens import references, to_texts


def require(what: str, library: str) -> None:
    """Raises: DlrunError with the line that installs a library of the extra `text`, where it is missing."""
    if importlib.util.find_spec(library) is None:
        raise DlrunError(f"{what} needs {library.replace('_', '-')}", 'pip install "dlrun[text]"')


class Perplexity:
    """loss (mean negative log-likelihood of a target, in nats), perplexity, accuracy, and bits_per_byte where it is
    known how many bytes of text the targets are.

    Reads loss [N] (the sum over an example's targets), num_targets [N], num_right [N] (targets that were the
    likeliest token) and perhaps bytes [N]; outputs without loss count for nothing.
    """

    def __init__(self) -> None:
        self._sums = Sums(4)  # targets, loss, right, bytes

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums."""
        if "loss" not in outputs.fields:
            return
        fields = outputs.fields
        sums = [fields[name].double().sum() for name in ("num_targets", "loss", "num_right")]
        sums.append(fields["bytes"].double().sum() if "bytes" in fields else torch.zeros_like(sums[0]))
        self._sums.add(torch.stack(sums))

    def state(self) -> list[Tensor]:
        """The sums, [4]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        targets, loss, right, size = self._sums.on_cpu().tolist()
        mean = loss / targets if targets else math.nan
        values = {"loss": mean, "perplexity": perplexity(mean), "accuracy": right / targets if targets else math.nan}
        return values | ({"bits_per_byte": loss / math.log(2) / size} if size else {})


def perplexity(loss: float) -> float:
    """e^loss; infinite where that is too large for a number."""
    return math.exp(loss) if not loss > 700 else math.inf


class Translation:
    """bleu and chrf, 0 to 100, as sacrebleu counts them over the whole corpus; their signatures are in `tables`.

    Reads text and reference, uint8 [N, L] each (see tokens.to_bytes); outputs without either count for nothing.
    lowercase: capitals of both count as small letters, where what says the texts knows no others.
    """

    def __init__(self, lowercase: bool = False) -> None:
        require("BLEU", "sacrebleu")
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        self._metrics: dict[str, Any] = {"bleu": BLEU(lowercase=lowercase), "chrf": CHRF(lowercase=lowercase)}
        # BLEU: both lengths, then matches and totals of 1- to 4-grams. chrF: three counts of 1- to 6-grams.
        self._sums = {"bleu": Sums(10), "chrf": Sums(18)}

    def update(self, outputs: Outputs) -> None:
        """Add the statistics of a batch's texts."""
        if not {"text", "reference"} <= outputs.fields.keys():
            return
        texts = to_texts(outputs.fields["text"])
        streams = _streams([references(text) for text in to_texts(outputs.fields["reference"])])
        for name, metric in self._metrics.items():
            # Sums over sentences, before they become a score, are not in sacrebleu's public functions.
            statistics = metric._extract_corpus_statistics(texts, streams)
            self._sums[name].add(torch.tensor(statistics, dtype=torch.float64).sum(0))

    def state(self) -> list[Tensor]:
        """The statistics, [10] and [18]."""
        return [sums.on_cpu() for sums in self._sums.values()]

    def compute(self) -> dict[str, float]:
        """Nothing where there were no texts."""
        if not self._sums["chrf"].on_cpu().any():
            return {}
        sums = {name: [int(value) for value in self._sums[name].on_cpu().tolist()] for name in self._metrics}
        return {name: metric._compute_score_from_stats(sums[name]).score for name, metric in self._metrics.items()}

    def tables(self) -> dict[str, list]:
        """{"signatures": what was counted and how, one line a metric}, where there were texts."""
        if not hasattr(self._metrics["bleu"], "num_refs"):
            return {}
        return {"signatures": [f"{name}: {metric.get_signature()}" for name, metric in self._metrics.items()]}


def _streams(each: list[list[str]]) -> list[list[str | None]]:
    """References of each example, as sacrebleu wants them: the first of all, the second of all, …"""
    return [list(stream) for stream in itertools.zip_longest(*each)]


class Rouge:
    """rouge1, rouge2 and rougeL, 0 to 1: F-measures after stemming, of the best of several references, mean over
    examples. Where the lead sentence of what was summed up is there, lead_rouge1 … are those of it.

    Reads text, reference and perhaps lead, uint8 [N, L] each; outputs without text or reference count for nothing.
    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", as rouge-score counts it.
    """

    _KINDS = ("rouge1", "rouge2", "rougeL")

    def __init__(self) -> None:
        require("ROUGE", "rouge_score")
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer: Any = RougeScorer(list(self._KINDS), use_stemmer=True)
        self._sums = {"text": Sums(4), "lead": Sums(4)}  # examples, and the sum of each kind

    def update(self, outputs: Outputs) -> None:
        """Add the scores of a batch's texts."""
        if not {"text", "reference"} <= outputs.fields.keys():
            return
        truths = [references(text) for text in to_texts(outputs.fields["reference"])]
        for name in self._sums.keys() & outputs.fields.keys():
            texts = to_texts(outputs.fields[name])
            scores = [self._scores(text, truth) for text, truth in zip(texts, truths, strict=True)]
            self._sums[name].add(torch.tensor(scores, dtype=torch.float64).sum(0))

    def _scores(self, text: str, truth: list[str]) -> list[float]:
        best = self._scorer.score_multi(truth or [""], text)
        return [1.0, *(best[kind].fmeasure for kind in self._KINDS)]

    def state(self) -> list[Tensor]:
        """The sums of the texts and of the leads, [4] each."""
        return [sums.on_cpu() for sums in self._sums.values()]

    def compute(self) -> dict[str, float]:
        """Nothing where there were no texts."""
        values: dict[str, float] = {}
        for name, prefix in (("text", ""), ("lead", "lead_")):
            count, *sums = self._sums[name].on_cpu().tolist()
            if count:
                values |= {f"{prefix}{kind}": total / count for kind, total in zip(self._KINDS, sums, strict=True)}
        return values
