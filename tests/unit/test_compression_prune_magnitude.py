"""Magnitude pruning: which weights go, when, that they stay zero, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.unit.fake_compression import IMAGES, TEXTS, Tools, images_net, read_back, said, texts_net
from torch import nn

from dlrun.compression import _masks, prune_magnitude
from dlrun.errors import DlrunError


def zeros(model: nn.Module) -> dict[str, float]:
    return {name: float((p == 0).float().mean()) for name, p in model.named_parameters() if p.dim() > 1}


def test_a_sparsity_of_zero_changes_nothing_and_trains_nothing():
    model, tools = images_net(), Tools(IMAGES)
    before = copy.deepcopy(model.state_dict())
    pruned, plan = prune_magnitude.build(IMAGES, sparsity=0.0).compress(model, tools)
    assert tools.trained == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    assert plan["report"]["nonzero"][0] == plan["report"]["nonzero"][1]


def test_the_smallest_weights_of_all_layers_go_first():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -0.2], [3.0, 4.0]]))
        model[1].weight.copy_(torch.tensor([[-0.3, 5.0], [6.0, 7.0]]))
    weights = dict(model.named_parameters())
    masks = _masks.largest({n: weights[n].abs() for n in ("0.weight", "1.weight")}, 3 / 8, over_all=True)
    assert masks["0.weight"].tolist() == [[False, False], [True, True]]
    assert masks["1.weight"].tolist() == [[False, True], [True, True]]


def test_with_scope_layer_every_layer_has_the_same_share_of_zeros():
    model = images_net()
    method = prune_magnitude.build(IMAGES, sparsity=0.5, scope="layer", finetune=None)
    pruned, _ = method.compress(model, Tools(IMAGES))
    assert zeros(pruned) == {name: 0.5 for name in zeros(pruned)}


def test_two_of_four_weights_along_the_inputs_stay_the_larger_two():
    layer = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([[4.0, -1.0, 2.0, 3.0], [0.1, 0.2, -0.3, 0.4]]))
    method = prune_magnitude.build(IMAGES, scope="n_m", finetune=None)
    pruned, plan = method.compress(layer, Tools(IMAGES))
    expected = torch.tensor([[4.0, 0.0, 0.0, 3.0], [0.0, 0.0, -0.3, 0.4]])
    assert torch.equal(pruned[0].weight, expected)
    assert plan["sparsity"] == 0.5


def test_n_of_m_holds_along_the_input_channels_of_a_convolution():
    model = images_net()
    pruned, _ = prune_magnitude.build(IMAGES, scope="n_m", finetune="1 epoch").compress(model, Tools(IMAGES))
    groups = (pruned.get_parameter("stages.1.0.weight") != 0).transpose(1, -1).unflatten(-1, (-1, 4)).sum(-1)
    assert (groups == 2).all()


def test_the_cubic_schedule_is_that_of_the_paper():
    assert [_masks.cubic(position) for position in (0.0, 0.5, 1.0, 2.0)] == [0.0, 0.875, 1.0, 1.0]


def test_zeros_grow_while_training_and_stay_exact():
    model, seen = images_net(), []
    method = prune_magnitude.build(IMAGES, sparsity=0.8, finetune="3 epochs", until=0.5)

    class Watching(Tools):
        def finetune(self, model, duration, *, after_step=None, **settings):
            def watched(step, total):
                after_step(step, total)
                weights = _masks.prunable(model, None, "x").values()
                seen.append(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights))

            return super().finetune(model, duration, after_step=watched, **settings)

    pruned, plan = method.compress(model, Watching(IMAGES))
    assert seen == sorted(seen) and seen[0] < 0.5
    assert seen[5:] == pytest.approx([0.8] * 7, abs=1e-3)
    assert plan["report"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    biases = [p for name, p in pruned.named_parameters() if p.dim() == 1 and "weight" in name]
    assert all(p.count_nonzero() == p.numel() for p in biases)


def test_masks_hold_although_the_best_weights_were_of_an_earlier_time():
    class EarlyBest(Tools):
        def score(self, model, split="valid"):
            self.scored += 1
            return {"accuracy": 1.0 / self.scored}

    pruned, plan = prune_magnitude.build(IMAGES, sparsity=0.9, finetune="4 epochs").compress(
        images_net(), EarlyBest(IMAGES)
    )
    assert plan["report"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert zeros(pruned) == pytest.approx(plan["report"]["layers"])


def test_what_is_ignored_keeps_all_of_its_weights():
    method = prune_magnitude.build(IMAGES, sparsity=0.5, finetune=None, ignore=["head"])
    pruned, plan = method.compress(images_net(), Tools(IMAGES))
    assert "head.weight" not in plan["report"]["layers"]
    assert zeros(pruned)["head.weight"] == 0


def test_recurrent_weights_are_pruned_and_embeddings_spared():
    pruned, plan = prune_magnitude.build(TEXTS, sparsity=0.5, finetune="1 epoch").compress(
        texts_net("rnn"), Tools(TEXTS)
    )
    assert "recurrent.kernel.weight_hh_l0" in plan["report"]["layers"]
    assert zeros(pruned)["tokens.weight"] < 0.1


def test_a_pruned_model_is_read_back_bit_for_bit():
    method = prune_magnitude.build(IMAGES, sparsity=0.5, finetune="1 epoch")
    pruned, plan = method.compress(images_net(), Tools(IMAGES))
    assert torch.equal(said(read_back(method, pruned, plan, images_net()), IMAGES), said(pruned, IMAGES))


def test_the_report_says_that_zeros_save_no_time():
    _, plan = prune_magnitude.build(IMAGES, sparsity=0.5, finetune=None).compress(images_net(), Tools(IMAGES))
    assert "save neither time nor memory" in plan["report"]["note"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"sparsity": 1.0}, "compression.prune_magnitude.sparsity: expected a number in [0, 1), got 1.0"),
     ({"until": 0.0}, "compression.prune_magnitude.until: expected a number in (0, 1], got 0.0"),
     ({"n": 5, "scope": "n_m"}, "compression.prune_magnitude.n: expected an integer from 1 to m=4, got 5"),
     ({"finetune": "3 epoks"}, "'3 epoks' has an unknown unit 'epoks'")],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings, says):
    with pytest.raises(DlrunError) as error:
        prune_magnitude.build(IMAGES, **settings)
    assert error.value.message == says


def test_a_model_without_weights_to_prune_is_refused():
    with pytest.raises(DlrunError, match="prune_magnitude: Embedding has no weight of a linear, convolution or"):
        prune_magnitude.build(TEXTS).compress(nn.Embedding(4, 4), Tools(TEXTS))


def test_n_of_m_is_refused_where_no_layer_can_be_shared_out():
    with pytest.raises(DlrunError, match="prune_magnitude: no layer of Sequential has a multiple of 4 inputs"):
        prune_magnitude.build(TEXTS, scope="n_m").compress(nn.Sequential(nn.Linear(3, 3)), Tools(TEXTS))


def test_an_ignored_layer_that_is_not_there_gets_the_nearest_name():
    with pytest.raises(DlrunError) as error:
        prune_magnitude.build(IMAGES, ignore=["stages.0.0.wieght"]).compress(images_net(), Tools(IMAGES))
    assert error.value.hint == "did you mean stages.0.0.weight?"
