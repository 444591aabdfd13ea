"""Keyed randomness: pure functions of integers, spread as they should be."""

import subprocess
import sys

import pytest
import torch

from dlrun.randomness import Draws, hash_integers, key, permutation, uniform


def draws(ids=range(64), **changed) -> Draws:
    return Draws(torch.tensor(list(ids)), **({"seed": 1, "epoch": 2, "step": 3} | changed))


def test_a_key_is_the_same_in_every_process():
    program = "from dlrun.randomness import key; print(key('order', 7, 3))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == key("order", 7, 3)
    assert -(2**63) <= key("order", 7, 3) < 2**63


def test_keys_tell_their_parts_apart():
    assert len({key(1, 23), key(12, 3), key(123), key("1", "2", "3"), key(3, 2, 1)}) == 5


def test_the_hash_is_splitmix64():
    """Steele, Lea and Flood 2014: outputs of the generator seeded with 1234567, from its published test vector."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = hash_integers(torch.arange(1, 6), 1234567)
    assert [value % 2**64 for value in found.tolist()] == expected


def test_uniform_numbers_are_spread_evenly_over_the_unit_interval():
    values = uniform(torch.arange(100_000), key("spread"))
    assert values.dtype == torch.float32
    assert float(values.min()) >= 0 and float(values.max()) < 1
    counts = torch.histc(values, bins=20, min=0, max=1)
    chi_square = float(((counts - 5000) ** 2 / 5000).sum())
    assert chi_square < 43.8  # 0.1 % of truly even draws lie beyond, with 19 degrees of freedom


def test_neighbouring_counters_and_keys_are_uncorrelated():
    here, beside = uniform(torch.arange(50_000), 5), uniform(torch.arange(1, 50_001), 5)
    other = uniform(torch.arange(50_000), 6)
    for pair in (beside, other):
        assert abs(float(torch.corrcoef(torch.stack([here, pair]))[0, 1])) < 0.015  # 3 sigma of 1 / sqrt(50000)


def test_a_permutation_depends_on_its_key_alone():
    assert sorted(permutation(100, "order", 0, 1).tolist()) == list(range(100))
    torch.manual_seed(5)
    first = permutation(100, "order", 0, 1)
    torch.manual_seed(6)
    assert torch.equal(first, permutation(100, "order", 0, 1))
    assert not torch.equal(first, permutation(100, "order", 0, 2))


def test_drawing_leaves_torchs_own_generator_alone():
    before = torch.get_rng_state()
    one = draws()
    one.uniform(3), one.integers(0, 5), one.flags(0.5), one.partners(), one.one(), permutation(10, "x")
    assert torch.equal(before, torch.get_rng_state())


def test_a_draw_belongs_to_the_example_and_not_to_its_place():
    whole, shuffled = draws().uniform(2), draws(reversed(range(64))).uniform(2)
    assert torch.equal(whole, shuffled.flip(0))
    assert torch.equal(draws([40]).uniform(2)[0], whole[40])


@pytest.mark.parametrize("changed", [{"seed": 2}, {"epoch": 3}, {"stream": 1}])
def test_another_seed_epoch_or_stream_draws_other_numbers(changed):
    assert not torch.equal(draws().uniform(), draws(**changed).uniform())


def test_an_examples_draw_does_not_depend_on_the_step():
    assert torch.equal(draws(step=3).uniform(), draws(step=4).uniform())


def test_every_call_draws_anew_and_the_same_calls_draw_the_same():
    one, again = draws(), draws()
    first, second = one.uniform(), one.uniform()
    assert not torch.equal(first, second)
    assert torch.equal(again.uniform(), first) and torch.equal(again.uniform(), second)


def test_a_stream_of_its_own_starts_its_calls_anew():
    one = draws()
    one.uniform()
    assert torch.equal(one.for_stream(4).uniform(), draws(stream=4).uniform())


def test_integers_take_every_value_of_their_range_about_equally_often():
    found = draws(range(6000)).integers(-2, 4)
    assert found.dtype == torch.int64
    counts = torch.bincount(found + 2, minlength=6)
    assert len(counts) == 6 and int(counts.min()) > 850 and int(counts.max()) < 1150


def test_flags_come_with_their_probability():
    assert not draws().flags(0.0).any() and draws().flags(1.0).all()
    assert abs(float(draws(range(20_000)).flags(0.3).float().mean()) - 0.3) < 0.01


def test_partners_are_a_permutation_keyed_by_the_step():
    assert sorted(draws().partners().tolist()) == list(range(64))
    assert torch.equal(draws().partners(), draws(range(64, 128)).partners())
    assert not torch.equal(draws().partners(), draws(step=4).partners())


def test_one_number_for_the_batch_is_keyed_by_the_step():
    assert 0 <= draws().one() < 1
    assert draws().one() == draws(range(3)).one() != draws(step=4).one()


def test_draws_of_many_shapes_are_distinct_for_every_entry():
    values = draws().uniform(2, 3, 4)
    assert values.shape == (64, 2, 3, 4)
    assert len(values.unique()) > 0.99 * values.numel()
