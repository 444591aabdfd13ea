"""Distillation: its loss against numbers from hand; texts, tokens and pairs, from one teacher and from several."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from tests.unit.fake_compression import IMAGES, PAIRS, TEXTS, WINDOWS, Tools, pairs_net, texts_net, windows_net
from torch import Tensor, nn

from dlrun import build
from dlrun.commands._compress_tools import CompressionTools
from dlrun.compression import _teaching, distill
from dlrun.contracts import NO_TARGET, DataSpec
from dlrun.errors import DlrunError
from dlrun.models import gpt, rnn, seq2seq_rnn, textcnn
from dlrun.registry import Registry
from dlrun.tasks import classification, language_model

TWO = DataSpec(("tokens",), "label", {"classes": 2, "vocabulary": 20}, {"tokens": (1,)})
TOKENS = DataSpec(("tokens",), "targets", {"vocabulary": 2, "context": 3}, {"tokens": (3,)})


class Says(nn.Module):
    """The same logits of every example."""

    def __init__(self, logits: list) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(len(tokens), *self.logits.shape)


class Known:
    """A predictor, as far as distillation asks."""

    def __init__(self, model: nn.Module, spec: DataSpec) -> None:
        self.model, self.spec = model, spec


class Several:
    """An ensemble, as far as distillation asks."""

    def __init__(self, members: list[Known], fit: dict | None = None) -> None:
        self.members, self.fit = members, fit or {}


def lent(spec: DataSpec, known) -> Tools:
    tools = Tools(spec)
    tools.predictor = lambda _: known  # type: ignore[method-assign]
    return tools


def divergence(student: nn.Module, teacher: nn.Module, spec: DataSpec) -> float:
    """KL(teacher || student) of a prediction, on all rows."""
    batch = Tools(spec).rows
    with torch.no_grad():
        said, wanted = (_teaching.answer(model.eval(), spec, batch).log_softmax(-1) for model in (student, teacher))
    return float((wanted.exp() * (wanted - said)).sum(-1).mean())


def trained(model: nn.Module, spec: DataSpec) -> nn.Module:
    return Tools(spec).finetune(model, "10 epochs")


# ---------------------------------------------------------------- the loss


def test_the_loss_is_that_of_two_softened_distributions_by_hand():
    """Softened at 2 the teacher says 1/4 and 3/4, the student 1/2 and 1/2; the truth costs ln 2."""
    teacher = _teaching.Teacher([Says([0.0, 2 * math.log(3)])], TWO, 2.0, remembers=False)
    taught = _teaching.Taught(classification.build(TWO), teacher, 0.25, None)
    batch = {"id": torch.arange(3), "tokens": torch.ones(3, 1).long(), "label": torch.tensor([0, 1, 1])}
    loss = taught.loss(Says([0.0, 0.0]), batch)
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl == pytest.approx(0.130812, abs=1e-6)
    assert float(loss.sum.detach()) == pytest.approx(3 * (0.75 * math.log(2) + 0.25 * 4 * kl), abs=1e-5)
    assert int(loss.count) == 3


def test_of_tokens_only_places_with_a_target_are_taught():
    wanted = [[0.0, math.log(3)], [0.0, math.log(3)], [0.0, 50.0]]
    teacher = _teaching.Teacher([Says(wanted)], TOKENS, 1.0, remembers=False)
    taught = _teaching.Taught(language_model.build(TOKENS), teacher, 1.0, None)
    batch = {"id": torch.arange(1), "tokens": torch.ones(1, 3).long(), "targets": torch.tensor([[0, 1, NO_TARGET]])}
    loss = taught.loss(Says([[0.0, 0.0]] * 3), batch)
    assert float(loss.sum.detach()) == pytest.approx(2 * 0.130812, abs=1e-5)
    assert int(loss.count) == 2


def test_probabilities_of_several_teachers_are_averaged_with_their_shares():
    first, second = Says([0.0, 0.0]), Says([0.0, math.log(3)])
    batch = {"id": torch.arange(1), "tokens": torch.ones(1, 1).long()}
    even = _teaching.Teacher([first, second], TWO, 1.0, remembers=False).says(batch)
    weighted = _teaching.Teacher([first, second], TWO, 1.0, False, [0.2, 0.8]).says(batch)
    assert torch.allclose(even.exp(), torch.tensor([[0.375, 0.625]]))
    assert torch.allclose(weighted.exp(), torch.tensor([[0.3, 0.7]]))


def test_an_ensemble_with_weights_teaches_with_them_and_leaves_out_what_weighs_nothing():
    members = [Known(Says([0.0, 0.0]), TWO) for _ in range(3)]
    shares = distill._shares(Several(members, {"weights": [3, 0, 1]}), members)
    assert list(shares.values()) == [0.75, 0.25] and list(shares) == [members[0].model, members[2].model]


def test_teacher_and_student_read_the_same_tokens_where_a_task_hides_some():
    class Hides:
        goal, additive = language_model.CausalTask.goal, True

        def loss(self, model, batch):
            return Tools(WINDOWS).task.loss(model, batch | {"tokens": batch["tokens"].masked_fill(hidden, 3)})

    read: list[Tensor] = []
    batch = Tools(WINDOWS).rows
    hidden = torch.arange(8) % 2 == 0
    student, teacher = windows_net(), windows_net()
    for model in (student, teacher):
        model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    _teaching.Taught(Hides(), _teaching.Teacher([teacher], WINDOWS, 1.0, False), 0.5, None).loss(student, batch)  # type: ignore[arg-type]
    assert len(read) == 2 and torch.equal(read[0], read[1]) and bool((read[0][:, hidden] == 3).all())


def test_features_are_compared_where_there_is_a_target():
    student, teacher = windows_net(width=8), windows_net()
    tools = Tools(WINDOWS)
    batch = {name: tensor[:2] for name, tensor in tools.rows.items()}
    features = _teaching.Features(student, teacher, batch, WINDOWS, 2.0)
    nothing = torch.zeros(2, 8, dtype=torch.bool)
    first = nothing.clone()
    first[0, 0] = True
    _teaching.answer(student, WINDOWS, batch)
    assert float(features.distance(batch, nothing).detach()) == 0.0
    mapped, wanted = features.map(features._found["student"]), features._found["teacher"]
    by_hand = 2.0 * (mapped[0, 0] - wanted[0, 0]).square().mean()
    assert torch.isclose(features.distance(batch, first), by_hand)
    features.close()


# ---------------------------------------------------------------- students of texts


def students() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {
        "rnn": rnn.build(TEXTS, width=8, hidden=8, dropout=0.0),
        "textcnn": textcnn.build(TEXTS, width=8, filters=4, kernels=(2, 3), dropout=0.0),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn", "textcnn"])
@pytest.mark.parametrize("features", [0.0, 0.1])
def test_a_small_reader_of_texts_learns_from_a_transformer(name, features):
    teacher, student = trained(texts_net(), TEXTS), students()[name]
    before = divergence(student, teacher, TEXTS)
    method = distill.build(TEXTS, duration="20 epochs", weight=1.0, temperature=1.0, features=features)
    student, plan = method.compress(student, lent(TEXTS, Known(teacher, TEXTS)))
    assert divergence(student, teacher, TEXTS) < 0.3 * before
    assert plan["report"]["teachers"] == 1 and not any(part._forward_pre_hooks for part in student.modules())


def test_a_textcnn_learns_from_a_recurrent_net():
    teacher, student = trained(texts_net("rnn"), TEXTS), students()["textcnn"]
    before = divergence(student, teacher, TEXTS)
    method = distill.build(TEXTS, duration="20 epochs", weight=1.0, temperature=2.0)
    student, _ = method.compress(student, lent(TEXTS, Known(teacher, TEXTS)))
    assert divergence(student, teacher, TEXTS) < 0.3 * before


@pytest.mark.slow
def test_several_readers_of_texts_become_one():
    members = [Known(trained(texts_net(name), TEXTS), TEXTS) for name in ("rnn", "transformer_classifier")]
    student = students()["rnn"]
    before = [divergence(student, member.model, TEXTS) for member in members]
    method = distill.build(TEXTS, duration="20 epochs", weight=1.0, temperature=1.0)
    student, plan = method.compress(student, lent(TEXTS, Several(members)))
    assert plan["report"]["teachers"] == 2
    assert all(
        divergence(student, member.model, TEXTS) < 0.5 * was for member, was in zip(members, before, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("features", [0.0, 0.1])
def test_a_language_model_of_half_the_width_says_what_the_whole_one_says(features):
    teacher = trained(windows_net(), WINDOWS)
    torch.manual_seed(1)
    student = gpt.build(WINDOWS, depth=3, heads=4, width=8)
    before = divergence(student, teacher, WINDOWS)
    method = distill.build(WINDOWS, duration="20 epochs", weight=1.0, temperature=1.0, features=features)
    student, plan = method.compress(student, lent(WINDOWS, Known(teacher, WINDOWS)))
    assert divergence(student, teacher, WINDOWS) < 0.5 * before
    assert plan["report"]["parameters"][0] == plan["report"]["parameters"][1]


@pytest.mark.slow
def test_a_recurrent_translator_learns_every_token_of_a_transformer():
    teacher = trained(pairs_net(), PAIRS)
    torch.manual_seed(1)
    student = seq2seq_rnn.build(PAIRS, width=8, hidden=16, dropout=0.0)
    before = divergence(student, teacher, PAIRS)
    method = distill.build(PAIRS, duration="10 epochs", weight=1.0, temperature=1.0)
    student, _ = method.compress(student, lent(PAIRS, Known(teacher, PAIRS)))
    assert divergence(student, teacher, PAIRS) < 0.75 * before


# ---------------------------------------------------------------- refused


def test_a_detector_is_refused_before_anything_is_read_or_trained():
    tools = SimpleNamespace(spec=DataSpec(("image",), "boxes", {"box_classes": 2, "boxes": 3}, {"image": (1, 8, 8)}))
    with pytest.raises(DlrunError, match="distill: a detector says which boxes it chose") as refused:
        distill.build(tools.spec).compress(nn.Identity(), tools)  # type: ignore[arg-type]
    assert refused.value.code == 2 and "dlrun train model=NAME" in refused.value.hint


def test_another_vocabulary_of_the_same_size_is_refused():
    other = DataSpec(TEXTS.inputs, TEXTS.target, TEXTS.sizes, TEXTS.shapes, files={"tokenizer.json": b"other"})
    with pytest.raises(DlrunError, match="the teacher reads or says other things") as error:
        distill.build(TEXTS).compress(students()["rnn"], lent(TEXTS, Known(texts_net(), other)))
    assert error.value.hint == "they need the same inputs, classes and vocabulary: train both on one data set"


def test_a_pretrained_student_without_its_weights_is_refused(monkeypatch):
    class FromFolder(nn.Linear):
        source, files = "folder", {}

    tools = object.__new__(CompressionTools)
    tools.seed, tools.spec, tools.device, tools._registry = 0, TEXTS, torch.device("cpu"), Registry()
    monkeypatch.setattr(build, "model", lambda *_: FromFolder(2, 2))
    with pytest.raises(DlrunError) as error:
        tools.make_model({"name": "pretrained", "path": "folder"})
    assert error.value.message == "distill: a student model=pretrained would begin without its pretrained weights"
    assert error.value.hint == "train it first, and let that run be taught: compression.distill.teacher=RUN"


def test_a_head_that_is_none_has_no_features():
    tools = lent(IMAGES, Known(nn.Conv2d(1, 3, 8), IMAGES))
    with pytest.raises(DlrunError, match="Conv2d has no single linear head whose features could be compared"):
        distill.build(IMAGES, features=1.0).compress(copy.deepcopy(nn.Conv2d(1, 3, 8)), tools)
