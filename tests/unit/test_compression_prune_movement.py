"""Movement pruning: the gradient of a score, which weights go, and that only zeros are left of it."""

from __future__ import annotations

import pytest
import torch
from tests.unit.fake_compression import (
    IMAGES,
    TEXTS,
    WINDOWS,
    Tools,
    images_net,
    read_back,
    said,
    texts_net,
    windows_net,
)  # fmt: skip
from torch import nn

from dlrun.compression import prune_movement
from dlrun.errors import DlrunError


def test_the_gradient_of_a_score_is_that_of_the_weight_times_the_weight():
    layer = nn.Linear(3, 2, bias=False)
    weight = layer.weight.detach().clone()
    scores = prune_movement._score(nn.Sequential(layer), "0.weight")
    scores.mask[0, 1] = False
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    (layer(x) ** 2).sum().backward()
    masked = (weight * scores.mask).requires_grad_()
    ((x @ masked.T) ** 2).sum().backward()
    torch.testing.assert_close(scores.scores.grad, masked.grad * weight)
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, masked.grad * scores.mask)


def test_a_sparsity_of_zero_changes_nothing_and_trains_nothing():
    tools = Tools(IMAGES)
    model, plan = prune_movement.build(IMAGES, sparsity=0.0).compress(images_net(), tools)
    assert tools.trained == 0
    assert torch.equal(said(model, IMAGES), said(images_net(), IMAGES))
    assert plan["report"]["nonzero"][0] == plan["report"]["nonzero"][1]


@pytest.mark.parametrize(
    ("make", "spec"),
    [(images_net, IMAGES), (texts_net, TEXTS), (lambda: texts_net("transformers"), TEXTS), (windows_net, WINDOWS)],
    ids=["cnn", "transformer_classifier", "bert", "gpt"],
)  # fmt: skip
def test_as_many_weights_are_zero_as_were_asked_for_and_nothing_else_is_left(make, spec):
    method = prune_movement.build(spec, sparsity=0.6, finetune="4 epochs")
    model, plan = method.compress(make(), Tools(spec))
    assert plan["report"]["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert model.state_dict().keys() == make().state_dict().keys()
    assert torch.equal(said(read_back(method, model, plan, make()), spec), said(model, spec))


def test_weights_that_training_shrinks_go_although_they_are_large():
    class Still(Tools):
        """Training whose loss wants the first weight at zero and the second at ten."""

        def finetune(self, model, duration, *, after_step=None, **settings):
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            for step in range(1, 21):
                optimizer.zero_grad()
                loss = (model[1].weight[:, 0] ** 2).sum() + ((model[1].weight[:, 1] - 10.0) ** 2).sum()
                loss.backward()
                optimizer.step()
                after_step(step, 20)
            return model

    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[3.0, 0.5]]))
    pruned, _ = prune_movement.build(IMAGES, sparsity=0.5).compress(model, Still(IMAGES))
    assert pruned[1].weight[0, 0] == 0 and pruned[1].weight[0, 1] > 0.5


def test_masks_hold_although_the_best_weights_were_of_an_earlier_time():
    class EarlyBest(Tools):
        def score(self, model, split="valid"):
            self.scored += 1
            return {"accuracy": 1.0 / self.scored}

    _, plan = prune_movement.build(IMAGES, sparsity=0.9, finetune="4 epochs").compress(images_net(), EarlyBest(IMAGES))
    assert plan["report"]["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_a_recurrent_model_is_refused():
    with pytest.raises(DlrunError) as error:
        prune_movement.build(TEXTS).compress(texts_net("rnn"), Tools(TEXTS))
    assert error.value.message.startswith("prune_movement: most weights of Rnn are recurrent")


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"sparsity": 1.0}, "compression.prune_movement.sparsity: expected a number in [0, 1), got 1.0"),
     ({"finetune": "0 epochs"}, 'compression.prune_movement.finetune: expected some training, e.g. "2 epochs", got '
                                "0 epochs")],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings, says):
    with pytest.raises(DlrunError) as error:
        prune_movement.build(IMAGES, **settings)
    assert error.value.message == says
