"""CTC: its loss, its searches against all alignments, its error rates, and models whose padding says nothing."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from dlrun.contracts import NO_TARGET, DataSpec, Exportable, Outputs, Thorough, unit
from dlrun.data import tones
from dlrun.errors import DlrunError
from dlrun.models import conformer, conv_gru_ctc, spectrogram_cnn
from dlrun.tasks import _ctc, classification, speech_recognition
from dlrun.tokens import CHARACTERS_FILE, Characters, to_bytes, to_texts

pytest.importorskip("jiwer", reason="the extra 'audio' is not installed")

SPELLED = Characters.of(["ab c"])
SPEC = DataSpec(
    ("spectrogram", "frames"),
    "targets",
    {"characters": SPELLED.size, "features": 8, "length": 30},
    {"spectrogram": (30, 8), "frames": ()},
    files={CHARACTERS_FILE: SPELLED.to_json()},
)


def log_probs(frames: int, size: int = 3, rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, frames, size, generator=generator)).log_softmax(2)


def collapsed(labels: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(labels) if label)


def all_alignments(table: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every sequence, added up over every path of labels."""
    found: dict[tuple[int, ...], float] = {}
    for labels in itertools.product(range(table.shape[1]), repeat=len(table)):
        probability = math.exp(sum(float(table[frame, label]) for frame, label in enumerate(labels)))
        found[collapsed(labels)] = found.get(collapsed(labels), 0.0) + probability
    return found


# ---------------------------------------------------------------- searches


@pytest.mark.parametrize("seed", range(6))
def test_beam_search_finds_the_sequence_that_is_likeliest_over_all_alignments(seed):
    table = log_probs(6, seed=seed)
    exact = all_alignments(table[0])
    best = max(exact, key=lambda sequence: exact[sequence])
    assert tuple(_ctc.beam_search(table, torch.tensor([6]), beams=200)[0]) == best


def test_a_repeat_needs_a_blank_between_and_rows_end_at_their_length():
    labels = torch.tensor([[1, 1, 0, 1, 2, 2], [2, 0, 0, 1, 1, 1]])
    table = torch.nn.functional.one_hot(labels, 3).float().mul(20).log_softmax(2)
    lengths = torch.tensor([6, 3])
    assert _ctc.greedy(table, lengths) == [[1, 1, 2], [2]] == _ctc.beam_search(table, lengths, 4)


def test_search_may_find_what_the_likeliest_labels_do_not_say():
    """Blank is the likeliest label of both frames (0.4 each time), and "a" the likeliest transcript."""
    table = torch.tensor([[[0.4, 0.35, 0.25], [0.4, 0.35, 0.25]]]).log()
    assert _ctc.greedy(table, torch.tensor([2])) == [[]]
    exact = all_alignments(table[0])
    assert exact[(1,)] == pytest.approx(0.35 * 0.35 + 2 * 0.35 * 0.4) and max(exact, key=lambda s: exact[s]) == (1,)
    assert _ctc.beam_search(table, torch.tensor([2]), 8) == [[1]]


# ---------------------------------------------------------------- the task


class Says(torch.nn.Module):
    """Gives what it holds."""

    def __init__(self, logits: torch.Tensor, lengths: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.lengths = torch.nn.Parameter(logits), lengths

    def forward(self, spectrogram, frames):
        return self.logits, self.lengths


def batch_of(texts: list[str]) -> dict[str, torch.Tensor]:
    encoded = [SPELLED.encode(text) for text in texts]
    longest = max(map(len, encoded))
    targets = torch.tensor([row + [NO_TARGET] * (longest - len(row)) for row in encoded])
    return {
        "id": torch.arange(len(texts)),
        "spectrogram": torch.zeros(len(texts), 30, 8),
        "frames": torch.full((len(texts),), 30),
        "targets": targets,
        "num_targets": torch.tensor([len(row) for row in encoded]),
        "reference": to_bytes(texts),
    }


def test_the_loss_is_that_of_all_alignments_and_is_counted_in_characters():
    table = log_probs(5, SPELLED.size, rows=2)
    batch = batch_of(["ab", "c"])
    task = speech_recognition.build(SPEC)
    loss = task.loss(Says(table, torch.tensor([5, 3])), batch)
    exact = [all_alignments(table[0]), all_alignments(table[1, :3])]
    expected = -sum(
        math.log(found[tuple(SPELLED.encode(text))]) for found, text in zip(exact, ("ab", "c"), strict=True)
    )
    assert float(loss.sum.detach()) == pytest.approx(expected, rel=1e-4) and loss.count == 3
    assert unit(task) == "tokens" and task.goal.metric == "wer"


def test_a_transcript_longer_than_its_frames_counts_as_nothing():
    loss = speech_recognition.build(SPEC).loss(Says(log_probs(2, SPELLED.size), torch.tensor([2])), batch_of(["abc"]))
    loss.sum.backward()
    assert float(loss.sum.detach()) == 0


def test_error_rates_are_counted_over_all_texts():
    task = speech_recognition.build(SPEC)
    texts = ("a b", "ab c", "c")
    batch = batch_of(["a c", "ab c", "b c"])
    said = [SPELLED.encode(text) for text in texts]
    labels = torch.tensor([[label for one in row for label in (one, 0)] + [0] * (8 - 2 * len(row)) for row in said])
    logits = torch.nn.functional.one_hot(labels, SPELLED.size).float() * 30
    model = Says(logits, torch.full((3,), 8))
    for kind in (task, task.thorough()):
        outputs = kind.outputs(model, batch)
        assert to_texts(outputs.fields["text"]) == list(texts)
        metric = kind.metrics()[0]
        metric.update(outputs)
        values = metric.compute()
        assert values["wer"] == pytest.approx(2 / 6) and values["cer"] == pytest.approx(3 / 10)
        assert values["loss"] == pytest.approx(float(outputs.fields["loss"].sum().detach()) / 10)
        assert kind.rows(outputs)[2] == {"id": 2, "text": "c", "truth": "b c"}
    assert isinstance(task, Thorough) and not task.searches
    alone = task.outputs(model, {name: value for name, value in batch.items() if name != "targets"})
    assert "truth" not in task.rows(alone)[0]
    empty = task.metrics()[0]
    empty.update(alone)
    assert math.isnan(empty.compute()["wer"])


def test_texts_of_several_batches_are_put_together():
    task = speech_recognition.build(SPEC)
    parts = [Outputs(torch.tensor([row]), {"text": to_bytes([text])}) for row, text in enumerate(("a", "ab c"))]
    assert [row["text"] for row in task.rows(Outputs.concatenate(parts))] == ["a", "ab c"]


def test_what_does_not_fit_is_refused():
    classes = DataSpec(("spectrogram", "frames"), "label", {"classes": 3, "features": 8, "length": 30}, {})
    with pytest.raises(DlrunError, match="needs data with 'characters'; this data set has classes=3"):
        speech_recognition.build(classes)
    with pytest.raises(DlrunError, match=r"task.beams: 0 is not at least 1"):
        speech_recognition.build(SPEC, beams=0)
    model = spectrogram_cnn.build(classes)
    with pytest.raises(DlrunError, match=r"the model gives \[1, 3\]; speech_recognition needs labels by frame"):
        speech_recognition.build(SPEC).loss(model, batch_of(["a"]))
    pictures = DataSpec(("image",), "label", {"classes": 3}, {"image": (1, 8, 8)})
    for component in (spectrogram_cnn, conformer, conv_gru_ctc):
        with pytest.raises(DlrunError, match="needs frames of sound; this data has image"):
            component.build(pictures)
    for build, says in (
        (lambda: conv_gru_ctc.build(SPEC, time_halvings=3), "model.time_halvings: expected an integer in 0..2, got 3"),
        (lambda: conformer.build(SPEC, kernel=4), "model.kernel: expected an odd number, got 4"),
        (lambda: spectrogram_cnn.build(classes, channels=()), r"model.channels: expected at least one stage, got \[\]"),
    ):
        with pytest.raises(DlrunError, match=says):
            build()


# ---------------------------------------------------------------- models

MODELS = {
    "conv_gru_ctc": lambda spec: conv_gru_ctc.build(spec, channels=(4, 4), width=8, hidden=8),
    "conformer": lambda spec: conformer.build(spec, depth=2, width=16, heads=2, kernel=5, channels=4),
    "spectrogram_cnn": lambda spec: spectrogram_cnn.build(spec, channels=(4, 8), convolutions=2, width=8),
}


def model_of(name: str, sizes: dict[str, int]):
    torch.manual_seed(0)
    spec = DataSpec(("spectrogram", "frames"), "", {"features": 9, "length": 30} | sizes, {})
    model = MODELS[name](spec)
    for module in model.modules():  # statistics that are not those of nothing
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
    return model


CASES = [("conv_gru_ctc", {"characters": 5}), ("conformer", {"characters": 5}), ("conformer", {"classes": 4}),
         ("spectrogram_cnn", {"classes": 4}), ("spectrogram_cnn", {"targets": 2})]  # fmt: skip


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_frames_after_an_examples_last_have_no_part_in_what_is_said_of_it(name, sizes):
    model = model_of(name, sizes).eval()
    x_BTF = torch.randn(3, 21, 9)
    frames = torch.tensor([21, 13, 1])
    said = model(x_BTF, frames)
    for row, count in enumerate(frames.tolist()):
        alone = model(x_BTF[row : row + 1, :count], frames[row : row + 1])
        if "characters" in sizes:
            assert int(said[1][row]) == int(alone[1][0]) == alone[0].shape[1] == -(-count // 2)
            torch.testing.assert_close(said[0][row, : alone[0].shape[1]], alone[0][0], atol=1e-5, rtol=1e-4)
        else:
            assert alone.shape == (1, next(iter(sizes.values())))
            torch.testing.assert_close(said[row : row + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_every_parameter_of_a_model_of_sound_gets_a_gradient(name, sizes):
    model = model_of(name, sizes)
    said = model(torch.randn(3, 21, 9), torch.tensor([21, 13, 7]))
    (said[0] if isinstance(said, tuple) else said).square().sum().backward()
    still = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_the_model_without_packing_says_the_same():
    model = model_of("conv_gru_ctc", {"characters": 5}).eval()
    assert isinstance(model, Exportable)
    x_BTF, frames = torch.randn(3, 21, 9), torch.tensor([21, 13, 1])
    said, again = model(x_BTF, frames), model.exportable()(x_BTF, frames)
    torch.testing.assert_close(said[0], again[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(said[1], again[1])


def test_a_few_steps_on_tones_lower_the_loss_and_predict_names_a_class():
    dataset = tones.build(SimpleNamespace(seed=0, assets=None), size=60)
    torch.manual_seed(0)
    task, model = classification.build(dataset.spec), spectrogram_cnn.build(dataset.spec, channels=(8, 16), width=16)
    batch = dataset.inputs.prepare(dataset.splits["train"].gather(torch.arange(24)))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.sum.backward()
        optimizer.step()
        losses.append(float(loss.sum.detach()))
    assert losses[-1] < 0.8 * losses[0]
    new = dataset.inputs.prepare(
        dataset.inputs.encode([{"audio": dataset.splits["test"].gather(torch.tensor([0]))["audio"][0].numpy()}])
    )
    assert task.rows(task.outputs(model.eval(), new))[0]["label"] in dataset.spec.labels
