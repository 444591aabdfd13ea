"""Networks trained side by side, against the same networks trained one after the other."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dlrun import build
from dlrun.config import convert
from dlrun.config.compose import compose
from dlrun.contracts import DataSpec, HoldsMembers
from dlrun.copies import Copies, EachCopy
from dlrun.errors import DlrunError
from dlrun.registry import Registry
from dlrun.tasks import classification

SPEC = DataSpec(("image",), "label", {"classes": 3}, {"image": (2, 8, 8)}, ("a", "b", "c"))
SMALL = {
    "mlp": ("model=mlp", "model.widths=[8,8]", "model.dropout=0.0"),
    "cnn": ("model=cnn", "model.channels=[4,8]", "model.dropout=0.0"),
    "resnet": ("model=resnet20", "model.width=4"),
}


def model(name: str, copies: int, seed: int = 0) -> nn.Module:
    config = convert.to_config(compose([*SMALL[name], f"model.copies={copies}"]).values, Registry())
    return build.model(config.model, Registry(), SPEC, seed)


def batches(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "id": torch.arange(6),
            "image": torch.randn(6, 2, 8, 8, generator=generator),
            "label": torch.randint(3, (6,), generator=generator),
        }
        for _ in range(count)
    ]


def steps(network: nn.Module, task, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        loss = task.loss(network.train(), batch)
        (loss.sum / loss.count).backward()
        optimizer.step()
        losses.append(float(loss.sum.detach()) / loss.count)
    return losses


@pytest.mark.parametrize("name", SMALL)
def test_copies_learn_what_each_would_learn_alone(name):
    task = classification.build(SPEC)
    together = model(name, 3)
    assert isinstance(together, Copies) and isinstance(together, HoldsMembers)
    losses = steps(together, EachCopy(task, 3), torch.optim.SGD(together.parameters(), 0.1, momentum=0.9))
    own_losses = []
    for index in range(3):
        alone = model(name, 1, seed=index)
        own_losses.append(steps(alone, task, torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9)))
        member = together.member(index)
        assert [*member.state_dict()] == [*alone.state_dict()]
        torch.testing.assert_close(dict(member.state_dict()), dict(alone.state_dict()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(own_losses).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_what_copies_say_is_the_mean_of_what_each_says(name):
    together, pictures = model(name, 3).eval(), batches(1)[0]["image"]
    said = torch.stack([together.member(index).eval()(pictures).softmax(1) for index in range(3)])
    torch.testing.assert_close(together(pictures).softmax(1), said.mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(said[0], said[1], atol=1e-3), "copies begin at weights of their own"


def test_dropout_is_drawn_for_each_copy():
    config = convert.to_config(compose(["model=mlp", "model.dropout=0.5", "model.copies=2"]).values, Registry())
    together = build.model(config.model, Registry(), SPEC, 0).train()
    with torch.no_grad():
        for parameter in together.parameters():
            parameter[1] = parameter[0]
    said = together(batches(1)[0]["image"].repeat(2, 1, 1, 1))
    assert not torch.allclose(said[:6], said[6:])


def test_biases_and_norms_of_copies_are_spared_weight_decay_too():
    config = convert.to_config(compose([*SMALL["cnn"], "model.copies=2", "optimizer=adamw"]).values, Registry())
    spared = []
    for copies in (1, 2):
        network = build.model(replace(config.model, copies=copies), Registry(), SPEC, 0)
        made = build.optimizer(config.optimizer, Registry(), build.Transferred(network), None).optimizer
        spared.append([len(group["params"]) for group in made.param_groups if group["weight_decay"] == 0])
    assert spared[0] == spared[1] != []


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    first, second = Tied(), Tied()
    together = Copies([first, second], "numbers")
    assert together.model.first.weight is together.model.second.weight  # type: ignore[union-attr]
    member, x = together.member(1), torch.randn(4, 3)
    assert member.first.weight is member.second.weight  # type: ignore[union-attr]
    torch.testing.assert_close(together.eval()(x), (first(x) + second(x)) / 2)
    assert copy.deepcopy(together).model.first.weight.shape == (2, 3, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SMALL)
def test_the_graph_of_copies_says_what_they_say(name):
    together, pictures = model(name, 2).eval(), batches(1)[0]["image"]
    form = together.exportable().eval()  # type: ignore[operator]
    torch.testing.assert_close(form(pictures), together(pictures), rtol=1e-4, atol=1e-5)
    traced = torch.export.export(form, (pictures,))
    torch.testing.assert_close(traced.module()(pictures), together(pictures), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "tied", ["train.clip_norm=1.0", "train.diagnose=true", "optimizer=adafactor", "hardware.channels_last=true"]
)
def test_what_would_tie_copies_together_is_refused_with_the_config(tied):
    with pytest.raises(DlrunError, match=r"model\.copies=2 does not go with"):
        convert.to_config(compose(["model.copies=2", tied]).values, Registry())


def test_a_model_that_vmap_cannot_compute_says_what_to_do_instead():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * float(x.sum())

    with pytest.raises(DlrunError, match="cannot be computed at once") as refused:
        Copies([Reads(), Reads()], "numbers")(torch.randn(4, 1))
    assert "ensemble=deep" in refused.value.hint
