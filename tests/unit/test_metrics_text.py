"""Metrics of texts against sacrebleu, rouge-score and hand-computed numbers; sums of ranks are sums of all."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from dlrun.contracts import Outputs
from dlrun.errors import DlrunError
from dlrun.metrics import text as metrics
from dlrun.metrics.reduce import reduce
from dlrun.tokens import to_bytes

SAID = [
    "The quick brown fox jumps over the lazy dog.",
    "A man is riding a horse on the beach .",
    "Two dogs run",
    "Zwei Männer stehen am Herd, und kochen!",
    "",
    "it is raining cats and dogs again and again and again",
]
TRUE = [
    ["The quick brown fox jumped over the lazy dog."],
    ["A man rides a horse on a beach.", "Somebody is riding a horse at the sea."],
    ["Two dogs are running through the snow."],
    ["Zwei Männer stehen am Herd und bereiten Essen zu."],
    ["Nothing was said."],
    ["it rains", "it is raining cats and dogs", "cats"],
]


def outputs(said: list[str], true: list[list[str]], **others: list[str]) -> Outputs:
    fields = {"text": to_bytes(said), "reference": to_bytes([joined(texts) for texts in true])}
    return Outputs(torch.arange(len(said)), fields | {name: to_bytes(texts) for name, texts in others.items()})


def joined(texts: list[str]) -> str:
    """Several references of an example as the one text that data makes of them."""
    from dlrun import tokens

    return tokens.BETWEEN_REFERENCES.join(texts)


def updated(metric, *parts: Outputs):
    for part in parts:
        metric.update(part)
    return metric


# ---------------------------------------------------------------- perplexity


def losses(**fields: list[float]) -> Outputs:
    tensors = {name: torch.tensor(values) for name, values in fields.items()}
    return Outputs(torch.arange(len(tensors["loss"])), tensors)


def test_perplexity_is_over_targets_and_bits_per_byte_over_bytes():
    parts = [
        losses(loss=[3 * math.log(4), math.log(2)], num_targets=[3, 1], num_right=[1, 1], bytes=[6, 1]),
        losses(loss=[0.0], num_targets=[4], num_right=[3], bytes=[8]),
    ]
    values = updated(metrics.Perplexity(), *parts).compute()
    assert values["loss"] == pytest.approx((6 + 1) * math.log(2) / 8)
    assert values["perplexity"] == pytest.approx(2 ** (7 / 8))
    assert values["accuracy"] == 5 / 8
    assert values["bits_per_byte"] == pytest.approx(7 / 15)


def test_bits_per_byte_is_left_out_where_bytes_are_unknown_and_a_huge_perplexity_is_infinite():
    values = updated(metrics.Perplexity(), losses(loss=[4000.0], num_targets=[4], num_right=[0])).compute()
    assert values == {"loss": 1000.0, "perplexity": math.inf, "accuracy": 0.0}
    nothing = updated(metrics.Perplexity(), Outputs(torch.arange(2), {})).compute()
    assert all(math.isnan(value) for value in nothing.values())


# ---------------------------------------------------------------- translation


def corpus_scores(said: list[str], true: list[list[str]]) -> dict[str, float]:
    import sacrebleu

    most = max(map(len, true))
    streams = [[texts[place] if place < len(texts) else None for texts in true] for place in range(most)]
    return {
        "bleu": sacrebleu.corpus_bleu(said, streams).score,  # type: ignore[arg-type]
        "chrf": sacrebleu.corpus_chrf(said, streams).score,  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("rows", [range(6), range(1), range(4), [1, 5]])
def test_bleu_and_chrf_are_those_of_sacrebleu_on_the_whole_corpus(rows):
    said, true = [SAID[row] for row in rows], [TRUE[row] for row in rows]
    whole = updated(metrics.Translation(), outputs(said, true)).compute()
    assert whole == corpus_scores(said, true)
    assert whole["bleu"] > 1
    by_one = updated(metrics.Translation(), *[outputs([a], [b]) for a, b in zip(said, true, strict=True)]).compute()
    assert by_one == whole


def test_sums_of_ranks_give_the_score_of_all():
    ranks = [
        updated(metrics.Translation(), outputs(SAID[:2], TRUE[:2])),
        updated(metrics.Translation(), outputs(SAID[2:], TRUE[2:])),
    ]
    others = [state.clone() for state in ranks[1].state()]
    reduce([ranks[0]], lambda flat: flat.add_(torch.cat([state.reshape(-1) for state in others])))
    assert ranks[0].compute() == corpus_scores(SAID, TRUE)


def test_the_signature_says_how_it_was_counted():
    metric = updated(metrics.Translation(), outputs(SAID[:1], TRUE[:1]))
    bleu, chrf = metric.tables()["signatures"]
    assert bleu.startswith("bleu: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert chrf.startswith("chrf: nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert metrics.Translation().tables() == {}


def test_capitals_do_not_count_where_none_can_be_said_and_the_signature_says_so():
    true = [["This Sentence is long enough to have FOUR of everything."]]
    metric = updated(metrics.Translation(lowercase=True), outputs([true[0][0].lower()], true))
    assert metric.compute() == pytest.approx({"bleu": 100, "chrf": 100})
    assert all("|case:lc|" in line for line in metric.tables()["signatures"])
    assert updated(metrics.Translation(), outputs([true[0][0].lower()], true)).compute()["bleu"] < 90


def test_a_perfect_translation_has_100_and_outputs_without_texts_have_no_score():
    true = [["This sentence is long enough to have four of everything."]]
    assert updated(metrics.Translation(), outputs(true[0], true)).compute() == pytest.approx({"bleu": 100, "chrf": 100})
    assert updated(metrics.Translation(), Outputs(torch.arange(2), {"loss": torch.ones(2)})).compute() == {}


# ---------------------------------------------------------------- summaries


def rouge(said: list[str], true: list[list[str]]) -> dict[str, float]:
    """Mean F-measures of rouge-score itself, the best reference for each kind."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    best = [
        {kind: max(scorer.score(reference, text)[kind].fmeasure for reference in texts) for kind in kinds}
        for text, texts in zip(said, true, strict=True)
    ]
    return {kind: sum(scores[kind] for scores in best) / len(best) for kind in kinds}


def test_rouge_is_that_of_rouge_score_with_the_best_of_several_references():
    parts = [outputs(SAID[:2], TRUE[:2]), outputs(SAID[2:], TRUE[2:])]
    found = updated(metrics.Rouge(), *parts).compute()
    assert found == pytest.approx(rouge(SAID, TRUE))
    assert 0.3 < found["rouge1"] < 1


def test_rouge_by_hand():
    # "cats sat" against "the cat sat down": stemmed, 2 of 2 and 2 of 4 words; the pair "cat sat" 1 of 1 and 1 of 3.
    found = updated(metrics.Rouge(), outputs(["Cats sat!"], [["the cat sat down"]])).compute()
    assert found == pytest.approx({"rouge1": 2 / 3, "rouge2": 1 / 2, "rougeL": 2 / 3})


def test_the_lead_sentence_is_scored_beside_what_was_said():
    leads = ["a b c", "Two dogs run"]
    found = updated(metrics.Rouge(), outputs(SAID[1:3], TRUE[1:3], lead=leads)).compute()
    assert {name: value for name, value in found.items() if not name.startswith("lead_")} == pytest.approx(
        rouge(SAID[1:3], TRUE[1:3])
    )
    expected = rouge(leads, TRUE[1:3])
    assert {name: found[f"lead_{name}"] for name in expected} == pytest.approx(expected)


def test_sums_of_rouge_over_ranks_give_the_mean_of_all():
    ranks = [
        updated(metrics.Rouge(), outputs(SAID[:1], TRUE[:1])),
        updated(metrics.Rouge(), outputs(SAID[1:], TRUE[1:])),
    ]
    others = [state.clone() for state in ranks[1].state()]
    reduce([ranks[0]], lambda flat: flat.add_(torch.cat([state.reshape(-1) for state in others])))
    assert ranks[0].compute() == pytest.approx(rouge(SAID, TRUE))


def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make, message in ((metrics.Translation, "BLEU needs sacrebleu"), (metrics.Rouge, "ROUGE needs rouge-score")):
        with pytest.raises(DlrunError, match=message) as raised:
            make()
        assert raised.value.hint == 'pip install "dlrun[text]"'
