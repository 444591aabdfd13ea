"""`--max-drop`: strengths that a method cannot have, what the user leaves alone, and every layer's sensitivity."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.fake_compression import IMAGES, TEXTS, Tools, images_net, texts_net
from torch import nn

from dlrun.commands import _compress_search as search
from dlrun.compression import _layers
from dlrun.config.schema import CompressionConfig
from dlrun.contracts import Goal
from dlrun.errors import DlrunError, Exit
from dlrun.training import latency

GOAL = Goal("accuracy", "max")


class Work:
    """What a search asks of a compression. does: from a model and the settings of a step to the model after it."""

    def __init__(self, does: Any, value: Any = lambda model: 1.0) -> None:
        self.done, self.weighed, self.config, self.said, self.tried = [], None, None, [], []
        self.tools: Any = SimpleNamespace(step=0, score=lambda model: {"accuracy": value(model)})
        self.reporter: Any = SimpleNamespace(note=self.said.append)
        self.batch, self.does = {"x": torch.zeros(1, 4)}, does
        self.predictor: Any = SimpleNamespace(spec=SimpleNamespace(inputs=("x",)), model=nn.Linear(4, 3))

    def step(self, model: nn.Module, name: str, step: CompressionConfig) -> nn.Module:
        self.tried.append(step.options)
        return self.does(model, step.options)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(latency, "_SECONDS", 0.0)


def searching(work: Work, method: str, drops: Any = (), **options: Any) -> search._Search:
    steps = {method: CompressionConfig(method, options)}
    return search._Search(work, nn.Linear(4, 3), steps, method, GOAL, 1.0, 0.1, list(drops))  # type: ignore[arg-type]


def test_a_strength_that_a_method_cannot_have_is_too_strong_and_the_search_goes_on():
    def does(model: nn.Module, options: dict) -> nn.Module:
        if options["macs"] < 0.57:
            raise DlrunError("prune_channels: Net keeps 0.57 of its MACs when all is taken out that may be")
        return model

    work = Work(does)
    tried = searching(work, "prune_channels").run()
    assert min(each.settings["macs"] for each in tried) == pytest.approx(0.57, abs=0.03)
    assert any("cannot be had: prune_channels: Net keeps 0.57" in line for line in work.said)


def test_where_no_strength_can_be_had_the_first_reason_is_told():
    def does(model: nn.Module, options: dict) -> nn.Module:
        raise DlrunError(f"low_rank: no layer at energy {options['energy']:.2f}", "another method")

    with pytest.raises(DlrunError) as error:
        searching(Work(does), "low_rank").run()
    assert (error.value.message, error.value.hint) == ("low_rank: no layer at energy 0.10", "another method")
    assert error.value.code == Exit.USAGE


def test_a_wrong_setting_ends_the_search_at_once():
    def does(model: nn.Module, options: dict) -> nn.Module:
        _layers.without(["head"], options["ignore"], "quantize_weights")
        return model

    work = Work(does)
    with pytest.raises(DlrunError, match=r"compression.quantize_weights.ignore: no layer is called 'layers'"):
        searching(work, "quantize_weights", [("head", 0.3), ("other", 0.1)], ignore=["layers"]).run()
    assert len(work.tried) == 1


def test_layers_that_the_user_leaves_alone_stay_so_beside_the_most_sensitive_ones():
    def does(model: nn.Module, options: dict) -> nn.Module:
        kept = _layers.without(["first", "head"], options["ignore"], "quantize_weights")
        model.rounded = kept  # type: ignore[assignment]
        return model

    work = Work(does, value=lambda model: 0.5 if "head" in model.rounded else 1.0)
    tried = searching(work, "quantize_weights", [("tied", 0.4), ("head", 0.3)], ignore=["first"]).run()
    assert all(each.settings["ignore"][0] == "first" for each in tried)
    assert any("head" in each.settings["ignore"] for each in tried if each.drop <= 0.1)


def test_a_runtime_that_takes_every_layer_is_tried_once():
    work = Work(lambda model, options: model, value=lambda model: 0.0)
    drops = [("a", 0.5), ("b", 0.1)]
    found = searching(work, "quantize_dynamic", drops, backend="onnxruntime", ignore=None).run()
    assert [each.settings for each in found] == [{}] and len(work.tried) == 1


def test_n_of_m_is_searched_by_n_and_no_setting_is_tried_twice():
    work = Work(lambda model, options: model, value=lambda model: 0.0)
    tried = searching(work, "prune_magnitude", scope="n_m", n=2, m=4).run()
    assert [each.settings for each in tried] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert [options["n"] for options in work.tried] == [1, 2, 3]


def test_each_layer_has_a_sensitivity_recurrent_ones_too_and_weights_come_back():
    for model, spec, names in (
        (texts_net("rnn"), TEXTS, {"tokens", "recurrent.kernel", "head"}),
        (images_net(), IMAGES, {"stages.0.0", "stages.1.0", "head"}),
    ):
        before = copy.deepcopy(model.state_dict())
        work = SimpleNamespace(tools=Tools(spec))
        found = search.sensitivity(work, model, GOAL, 1.0)  # type: ignore[arg-type]
        assert {name for name, _ in found} == names
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
