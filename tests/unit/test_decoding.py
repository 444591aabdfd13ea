"""Greedy search, sampling and beam search: against all sequences there are, and against the probabilities."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dlrun.decoding import (
    Generation,
    ModelDecoder,
    draw,
    generate,
    select,
    stream,
    without_repeats,
)
from dlrun.errors import DlrunError
from dlrun.randomness import permutation, uniform

END = 0


class Prefix(NamedTuple):
    tokens_BT: Tensor
    vocabulary: int


class Random:
    """Log-probabilities that depend on all tokens so far and on nothing else."""

    def __init__(self, vocabulary: int = 3, spread: float = 1.5) -> None:
        self.vocabulary, self.spread, self.rows_seen = vocabulary, spread, 0

    def start(self, *inputs: Tensor) -> tuple[Tensor, Prefix]:
        return self._of(inputs[0]), Prefix(inputs[0], self.vocabulary)

    def step(self, tokens_B: Tensor, state: Prefix) -> tuple[Tensor, Prefix]:
        tokens_BT = torch.cat([state.tokens_BT, tokens_B[:, None]], 1)
        return self._of(tokens_BT), state._replace(tokens_BT=tokens_BT)

    def _of(self, tokens_BT: Tensor) -> Tensor:
        self.rows_seen += len(tokens_BT)
        return torch.stack([self.after(tuple(tokens)) for tokens in tokens_BT.tolist()])

    @functools.cache  # noqa: B019 - lives as long as its test
    def after(self, tokens: tuple[int, ...]) -> Tensor:
        seed = sum((token + 1) * 31**place for place, token in enumerate(tokens)) % 2**31
        logits_V = self.spread * torch.randn(self.vocabulary, generator=torch.Generator().manual_seed(seed))
        return logits_V.log_softmax(0)


def prompts(*values: int) -> Tensor:
    return torch.tensor(values)[:, None]


def said(decoder, inputs_B1: Tensor, end: int | None = END, **settings):
    ids_B = torch.arange(len(inputs_B1))
    return generate(decoder, [inputs_B1], Generation(**settings), end, ids_B)


def every_sequence(decoder: Random, prompt: int, longest: int, alpha: float) -> dict[tuple[int, ...], float]:
    """Sequence (without the end) -> score, of all that end within so many tokens or are as long."""
    scores: dict[tuple[int, ...], float] = {}

    def go_on(tokens: tuple[int, ...], total: float) -> None:
        for token, value in enumerate(decoder.after((prompt, *tokens)).tolist()):
            length = len(tokens) + 1
            if token == END:
                scores[tokens] = (total + value) / ((5 + length) / 6) ** alpha
            elif length == longest:
                scores[(*tokens, token)] = (total + value) / ((5 + length) / 6) ** alpha
            else:
                go_on((*tokens, token), total + value)

    go_on((), 0.0)
    return scores


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5, -1.0])
def test_beam_search_of_full_width_finds_the_best_of_all_sequences(alpha):
    decoder, inputs = Random(), prompts(*range(5, 17))
    found = said(decoder, inputs, max_tokens=4, beams=3**4, length_penalty=alpha).sequences()
    for prompt, sequence in zip(inputs[:, 0].tolist(), found, strict=True):
        scores = every_sequence(decoder, prompt, 4, alpha)
        assert tuple(sequence) == max(scores, key=lambda key: scores[key])


def test_greedy_search_is_beam_search_with_one_beam():
    decoder, inputs = Random(vocabulary=5), prompts(*range(20))
    greedy = said(decoder, inputs, max_tokens=8)
    narrow = beam_of_one(decoder, inputs, 8)
    assert greedy.sequences() == narrow.sequences()
    torch.testing.assert_close(greedy.log_probs_B, narrow.log_probs_B)


def beam_of_one(decoder: Random, inputs: Tensor, longest: int):
    from dlrun._decoding_beam import beam_search

    return beam_search(decoder, [inputs], Generation(max_tokens=longest), END)


def test_a_wider_beam_is_seldom_worse_and_its_log_probabilities_are_the_models():
    decoder, inputs = Random(vocabulary=5, spread=2.5), prompts(*range(40))
    narrow = said(decoder, inputs, max_tokens=6, length_penalty=0.0)
    wide = said(decoder, inputs, max_tokens=6, beams=6, length_penalty=0.0)
    assert wide.log_probs_B.mean() > narrow.log_probs_B.mean()
    for found in (narrow, wide):
        for prompt, sequence, value in zip(range(40), found.sequences(), found.log_probs_B.tolist(), strict=True):
            whole = [*sequence, END] if len(sequence) < 6 else sequence
            steps = [decoder.after((prompt, *whole[:place]))[token].item() for place, token in enumerate(whole)]
            assert value == pytest.approx(sum(steps), abs=1e-4) or len(sequence) == 5  # 5 and an end, or a sixth


@pytest.mark.parametrize("settings", [{}, {"beams": 4}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}])
def test_a_result_does_not_depend_on_the_batch(settings):
    decoder, inputs = Random(vocabulary=6), prompts(*range(9))
    together = said(decoder, inputs, max_tokens=10, **settings).sequences()
    assert len({len(sequence) for sequence in together}) > 1
    for index in range(9):
        alone = generate(
            decoder, [inputs[index : index + 1]], Generation(10, **settings), END, torch.tensor([index])
        ).sequences()
        assert alone == together[index : index + 1]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"beams": 3}])
def test_examples_that_have_ended_cost_nothing(settings):
    decoder, inputs = Random(vocabulary=3), prompts(*range(30))
    together = said(decoder, inputs, max_tokens=50, **settings)
    seen, decoder.rows_seen = decoder.rows_seen, 0
    for index in range(30):
        generate(decoder, [inputs[index : index + 1]], Generation(50, **settings), END, torch.tensor([index]))
    assert seen == decoder.rows_seen
    if not settings:  # one row for every token that was said, the end too
        assert seen == int((together.lengths_B + 1).clamp(max=50).sum())


def test_the_end_is_not_part_of_what_is_said_and_what_is_behind_it_is_zero():
    found = said(Random(vocabulary=4), prompts(*range(12)), max_tokens=6)
    for tokens, length in zip(found.tokens_BT.tolist(), found.lengths_B.tolist(), strict=True):
        assert END not in tokens[:length] and set(tokens[length:]) <= {0}


def test_without_an_end_token_max_tokens_are_said():
    for settings in ({}, {"temperature": 1.0}, {"beams": 3}):
        found = said(Random(), prompts(1, 2), end=None, max_tokens=7, **settings)
        assert found.lengths_B.tolist() == [7, 7]


# ---------------------------------------------------------------- draws


def drawn(log_probs_V: Tensor, count: int, **settings) -> Tensor:
    uniform_B = uniform(torch.arange(count), 12345)
    return draw(log_probs_V.expand(count, -1), uniform_B, Generation(**{"temperature": 1.0, **settings}))


def fits(tokens: Tensor, expected_V: Tensor) -> bool:
    """A chi-square test at 0.1 %."""
    counts = torch.bincount(tokens, minlength=len(expected_V)).double()
    wanted = expected_V * len(tokens)
    assert counts[wanted == 0].sum() == 0
    there = wanted > 0
    statistic = ((counts - wanted)[there] ** 2 / wanted[there]).sum().item()
    return there.sum() == 1 or statistic < stats.chi2.ppf(0.999, int(there.sum()) - 1)


PROBABILITIES = torch.tensor([0.02, 0.35, 0.08, 0.25, 0.1, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_probabilities_of_the_model_at_its_temperature(temperature):
    expected = (PROBABILITIES.log() / temperature).softmax(0)
    assert fits(drawn(PROBABILITIES.log(), 40_000, temperature=temperature), expected)


def test_top_k_draws_among_the_k_likeliest_in_proportion():
    expected = torch.tensor([0, 0.35, 0, 0.25, 0, 0.2], dtype=torch.float64) / 0.8
    assert fits(drawn(PROBABILITIES.log(), 20_000, top_k=3), expected)
    assert set(drawn(PROBABILITIES.log(), 100, top_k=1).tolist()) == {1}
    assert fits(drawn(PROBABILITIES.log(), 20_000, top_k=50), PROBABILITIES)


@pytest.mark.parametrize(
    ("top_p", "support"), [(0.01, {1}), (0.34, {1}), (0.36, {1, 3}), (0.75, {1, 3, 5}), (0.89, {1, 3, 5, 4})]
)
def test_top_p_draws_among_the_fewest_that_have_the_probability(top_p, support):
    expected = torch.zeros(6, dtype=torch.float64)
    expected[list(support)] = PROBABILITIES[list(support)]
    tokens = drawn(PROBABILITIES.log(), 20_000, top_p=top_p)
    assert set(tokens.tolist()) == support
    assert fits(tokens, expected / expected.sum())


def test_top_k_comes_before_top_p():
    # Of the two likeliest, 0.35 and 0.25, the first has 0.58 of the probability.
    assert set(drawn(PROBABILITIES.log(), 1000, top_k=2, top_p=0.55).tolist()) == {1}
    assert set(drawn(PROBABILITIES.log(), 1000, top_k=2, top_p=0.6).tolist()) == {1, 3}


def test_sequences_are_drawn_with_the_probability_of_the_sequence():
    decoder, count = Random(vocabulary=3), 8000
    inputs = prompts(*[7] * count)
    found = Counter(tuple(sequence) for sequence in said(decoder, inputs, max_tokens=2, temperature=1.0).sequences())
    scores = every_sequence(decoder, 7, 2, 0.0)
    names = sorted(scores)
    tokens = torch.tensor(
        list(itertools.chain.from_iterable([place] * found[name] for place, name in enumerate(names)))
    )
    assert fits(tokens, torch.tensor([math.exp(scores[name]) for name in names], dtype=torch.float64))


def test_the_seed_decides_the_draws():
    decoder, inputs = Random(vocabulary=8), prompts(*range(6))
    first, again, other = (
        said(decoder, inputs, max_tokens=12, temperature=1.0, seed=seed).sequences() for seed in (1, 1, 2)
    )
    assert first == again != other


# ---------------------------------------------------------------- repetition


def test_no_repeat_bars_what_would_say_a_sequence_again():
    before = torch.tensor([[1, 2, 3, 1, 2], [4, 4, 4, 0, 1]])
    barred = without_repeats(torch.zeros(2, 5), before, 3).isinf()
    assert barred.nonzero().tolist() == [[0, 3]]  # 1 2 3 was said, 1 2 is being said
    barred = without_repeats(torch.zeros(2, 5), before, 1).isinf()
    assert barred.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 4]]
    assert not without_repeats(torch.zeros(2, 5), before, 0).isinf().any()
    assert not without_repeats(torch.zeros(1, 2), torch.tensor([[0, 1]]), 1).isinf().any(), "all would be barred"


@pytest.mark.parametrize("settings", [{}, {"beams": 3}, {"temperature": 1.0}])
def test_no_pair_is_said_twice_with_no_repeat_2(settings):
    for sequence in said(Random(vocabulary=20, spread=5), prompts(*range(10)), end=None, max_tokens=15, no_repeat=2,
                         **settings).sequences():  # fmt: skip
        pairs = list(itertools.pairwise(sequence))
        assert len(set(pairs)) == len(pairs)


# ---------------------------------------------------------------- parts


def test_a_stream_says_what_generate_says():
    decoder, inputs = Random(vocabulary=4), prompts(3)
    streamed = [part.tokens_R.item() for part in stream(decoder, [inputs], Generation(9), END, torch.tensor([0]))]
    assert [token for token in streamed if token != END] == said(decoder, inputs, max_tokens=9).sequences()[0]


class Cell(nn.Module):
    """A model with `start` and `step`: its logits are a function of the number of tokens so far."""

    def start(self, tokens_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, dict]:
        return self._logits(lengths_B), {"said": lengths_B, "facts": (3, ["x"])}

    def step(self, tokens_B: Tensor, state: dict) -> tuple[Tensor, dict]:
        return self._logits(state["said"] + 1), {**state, "said": state["said"] + 1}

    def _logits(self, said_B: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(said_B % 4, 4) * 9.0


def test_a_models_start_and_step_are_a_decoder():
    inputs = [torch.tensor([[1, 2, 3], [1, 0, 0]]), torch.tensor([3, 1])]
    found = generate(ModelDecoder(Cell()), inputs, Generation(5), END, torch.arange(2))
    assert found.sequences() == [[3], [1, 2, 3]]
    torch.testing.assert_close(ModelDecoder(Cell()).start(*inputs)[0].exp().sum(1), torch.ones(2))
    with pytest.raises(DlrunError, match="Linear does not generate: it has no start and step"):
        ModelDecoder(nn.Linear(1, 1))


def test_select_takes_rows_of_every_tensor_and_leaves_facts():
    state = {"a": torch.arange(3), "b": (torch.eye(3), [7, torch.arange(3) * 2]), "c": Prefix(torch.eye(3), 5)}
    chosen = select(state, torch.tensor([2, 2, 0, 1]))
    assert chosen["a"].tolist() == [2, 2, 0, 1] and chosen["b"][1][1].tolist() == [4, 4, 0, 2]
    assert chosen["b"][1][0] == 7 and chosen["c"].vocabulary == 5 and isinstance(chosen["c"], Prefix)
    torch.testing.assert_close(chosen["b"][0], torch.eye(3)[[2, 2, 0, 1]])


def test_an_average_of_decoders_is_a_decoder():
    """What an ensemble of generators will be: the protocol lets it."""

    class Average:
        def __init__(self, *members: Random) -> None:
            self.members = members

        def start(self, *inputs: Tensor):
            return self._mean([member.start(*inputs) for member in self.members])

        def step(self, tokens_B: Tensor, state):
            return self._mean([m.step(tokens_B, own) for m, own in zip(self.members, state, strict=True)])

        def _mean(self, said):
            return torch.stack([log_probs for log_probs, _ in said]).mean(0), tuple(state for _, state in said)

    inputs = prompts(*range(6))
    for settings in ({}, {"beams": 3}, {"temperature": 1.0}):
        alone = said(Random(vocabulary=5), inputs, max_tokens=8, **settings)
        twice = said(Average(Random(vocabulary=5), Random(vocabulary=5)), inputs, max_tokens=8, **settings)
        assert alone.sequences() == twice.sequences()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: 0 is not at least 1"),
        ({"beams": 0}, "beams: 0 is not at least 1"),
        ({"temperature": -1.0}, "temperature: -1.0 is not a number of at least 0"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"top_p": 0.0}, "top_p: 0.0 is not above 0 and at most 1"),
        ({"top_k": -1}, "top_k: -1 is not at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(DlrunError, match=message):
        Generation(**settings)


def test_settings_are_changed_as_a_person_means_it():
    searched = Generation(beams=4)
    assert searched.but(max_tokens=5, temperature=None) == Generation(5, beams=4)
    assert searched.but(top_k=10) == Generation(top_k=10, temperature=1.0)
    assert Generation(temperature=0.8).but(beams=3).beams == 3
    assert Generation(temperature=0.8).but(top_p=0.5) == Generation(temperature=0.8, top_p=0.5)
    assert Generation(temperature=0.8).but(temperature=0.0).temperature == 0
    with pytest.raises(DlrunError, match="beam search draws nothing, so it takes no top_p"):
        searched.but(beams=2, top_p=0.9)
    assert searched.but(length_penalty=1.0) == Generation(beams=4, length_penalty=1.0)
    with pytest.raises(DlrunError, match="length_penalty: it is of beam search") as caught:
        Generation().but(length_penalty=1.0)
    assert caught.value.hint == "add --beams 4"
    with pytest.raises(DlrunError, match="length_penalty: 11 is not between -10 and 10"):
        searched.but(length_penalty=11)


def test_the_order_of_the_batch_does_not_matter():
    decoder, order = Random(vocabulary=6), permutation(8, "order")
    ids = torch.arange(8)
    generation = Generation(9, temperature=1.0)
    straight = generate(decoder, [prompts(*range(8))], generation, END, ids).sequences()
    shuffled = generate(decoder, [prompts(*range(8))[order]], generation, END, ids[order]).sequences()
    assert shuffled == [straight[index] for index in order.tolist()]
