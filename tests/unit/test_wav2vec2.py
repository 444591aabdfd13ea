"""wav2vec 2.0: the library's network on recordings, its lengths, its weights by their published names."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.augment import spec_augment
from dlrun.contracts import DataSpec, FromLibrary, Pretrained
from dlrun.data import speech, tones
from dlrun.errors import DlrunError
from dlrun.models import wav2vec2
from dlrun.tasks import classification, speech_recognition
from dlrun.tokens import CHARACTERS_FILE, Characters
from dlrun.transfer import _sources, finetune

soundfile = pytest.importorskip("soundfile", reason="the extra 'audio' is not installed")
TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8, 8],
    "conv_kernel": [10, 8], "conv_stride": [5, 4], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
SPELLED = Characters.of(["ab"])
SPEC = DataSpec(
    ("samples", "lengths"),
    "targets",
    {"characters": SPELLED.size, "length": 400},
    {"samples": (400,), "lengths": ()},
    files={CHARACTERS_FILE: SPELLED.to_json()},
)
CLASSES = DataSpec(
    ("samples", "lengths"), "label", {"classes": 3, "length": 400}, {"samples": (400,), "lengths": ()}, ("a", "b", "c")
)
AS_PUBLISHED = {"feat_extract_norm": "group", "do_stable_layer_norm": False}  # of the base size


class FromDisk:
    def weights(self, source: str):
        return _sources.read(source)


def written(folder, **settings):
    """The library's network of this size, saved there."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(3)
    network = Wav2Vec2ForCTC(Wav2Vec2Config(**TINY | AS_PUBLISHED | settings, vocab_size=SPELLED.size))
    with torch.no_grad():
        network.wav2vec2.feature_extractor.conv_layers[0].layer_norm.weight.normal_()
    network.save_pretrained(folder)
    return network.eval()


@pytest.mark.parametrize("kind", [{}, AS_PUBLISHED])
def test_what_stands_after_a_recording_has_no_part_in_what_is_said_of_it(kind):
    torch.manual_seed(0)
    model = wav2vec2.build(SPEC, options=TINY | kind).eval()
    assert isinstance(model, FromLibrary) and model.architecture == "wav2vec2"
    samples = torch.randn(2, 400)
    samples[1, 250:] = 0
    logits, frames = model(samples, torch.tensor([400, 250]))
    alone, own = model(samples[1:, :250], torch.tensor([250]))
    assert logits.shape == (2, int(frames[0]), SPELLED.size) and int(frames[1]) == int(own[0]) == alone.shape[1]
    torch.testing.assert_close(logits[1, : own[0]], alone[0], atol=1e-4, rtol=1e-3)
    louder = wav2vec2.build(CLASSES, options=TINY | kind | {"initializer_range": 0.5}).eval()
    said = louder(samples, torch.tensor([400, 250]))
    assert said.shape == (2, 3) and float((said[0] - said[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(said[1:], louder(samples[1:, :250], torch.tensor([250])), atol=1e-5, rtol=1e-3)


def test_without_padding_it_is_the_librarys_network(tmp_path):
    network = written(tmp_path)
    model = wav2vec2.build(SPEC, path=str(tmp_path))
    assert isinstance(model, Pretrained) and model.source == str(tmp_path) and [*model.files] == ["architecture.json"]
    result = finetune.build(model, SPEC, FromDisk(), str(tmp_path))
    assert result.missing == [] and result.head == ""
    samples = torch.randn(2, 400)
    said, _ = model.eval()(samples, torch.tensor([400, 400]))
    torch.testing.assert_close(said, network(samples).logits)


def test_a_folder_gives_all_but_the_head_to_a_classifier_that_learns(tmp_path):
    network = written(tmp_path)
    model = wav2vec2.build(CLASSES, path=str(tmp_path))
    result = finetune.build(model, CLASSES, FromDisk(), str(tmp_path))
    assert set(result.missing) == {"head.weight", "head.bias"}
    samples, lengths = torch.randn(6, 400), torch.full((6,), 400)
    states = network.wav2vec2(samples).last_hidden_state
    torch.testing.assert_close(model.eval()(samples, lengths), model.head(states.mean(1)))
    batch = {"id": torch.arange(6), "samples": samples, "lengths": lengths, "label": torch.arange(6) % 3}
    task, optimizer = classification.build(CLASSES), torch.optim.AdamW(model.train().parameters(), 0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.sum.div(loss.count).backward()
        optimizer.step()
        losses.append(float(loss.sum.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_own_frames_are_normalised_as_a_recording_alone_is():
    norm, librarys = wav2vec2.OwnFramesNorm(3, 3), torch.nn.GroupNorm(3, 3)
    x_BCT = torch.randn(2, 3, 9)
    norm.frames_B = torch.tensor([9, 4])
    torch.testing.assert_close(norm(x_BCT)[:1], librarys(x_BCT[:1]))
    torch.testing.assert_close(norm(x_BCT)[1:, :, :4], librarys(x_BCT[1:, :, :4]))


def test_published_weights_are_found_by_their_names():
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model = wav2vec2.build(SPEC, options=TINY)
    published = Wav2Vec2Model(Wav2Vec2Config(**TINY)).state_dict()
    own = model.own_names(list(published))
    assert own.keys() == published.keys() and set(own.values()) <= model.state_dict().keys()
    with_prefix = model.own_names([f"wav2vec2.{name}" for name in published])
    assert set(with_prefix.values()) == set(own.values())
    convolution = "encoder.pos_conv_embed.conv"
    assert model.own_names([f"wav2vec2.{convolution}.weight_g", f"{convolution}.weight_v"]) == {
        f"wav2vec2.{convolution}.weight_g": f"network.wav2vec2.{convolution}.parametrizations.weight.original0",
        f"{convolution}.weight_v": f"network.wav2vec2.{convolution}.parametrizations.weight.original1",
    }


def test_recordings_reach_the_model_as_samples_of_mean_0_and_deviation_1(tmp_path):
    rows = []
    for index in range(6):
        samples = 0.1 + 0.3 * np.sin(np.arange(1600 + 100 * index) * 0.1)
        soundfile.write(tmp_path / f"{index}.wav", samples, 16000)
        rows.append(f"{index}.wav,{'ab'[: 1 + index % 2]}")
    (tmp_path / "rows.csv").write_text("file,text\n" + "\n".join(rows))
    dataset = speech.build(
        SimpleNamespace(seed=0, assets=None), path=str(tmp_path / "rows.csv"), transcript="text", features="samples",
        valid_fraction=0.0, test_fraction=0.0,
    )  # fmt: skip
    batch = dataset.inputs.prepare(dataset.splits["train"].gather(torch.arange(6)))
    assert batch["lengths"].tolist() == [1600 + 100 * index for index in range(6)]
    for row, length in enumerate(batch["lengths"].tolist()):
        own = batch["samples"][row, :length]
        assert float(own.mean()) == pytest.approx(0, abs=1e-4) and float(own.std()) == pytest.approx(1, abs=1e-3)
        assert not batch["samples"][row, length:].any()
    loss = speech_recognition.build(dataset.spec).loss(wav2vec2.build(dataset.spec, options=TINY), batch)
    loss.sum.backward()
    assert loss.count == 9 and loss.sum.isfinite()
    with pytest.raises(DlrunError, match=r"spec_augment hides frames; this data has samples"):
        spec_augment.build(dataset.spec)


def test_what_does_not_fit_is_refused():
    frames = tones.build(SimpleNamespace(seed=0, assets=None), size=30).spec
    with pytest.raises(DlrunError, match="wav2vec2 needs samples; this data has spectrogram, frames"):
        wav2vec2.build(frames)
    neither = DataSpec(("samples", "lengths"), "target", {"targets": 2, "length": 400}, {})
    with pytest.raises(DlrunError, match="needs data with 'classes'"):
        wav2vec2.build(neither)
    spelled = DataSpec(("spectrogram", "frames"), "targets", {"characters": 3, "features": 8}, {})
    with pytest.raises(DlrunError, match="wav2vec2 needs samples; this data has spectrogram, frames"):
        wav2vec2.build(spelled)
    with pytest.raises(DlrunError, match="wav2vec2 has no 'hiden_size'"):
        wav2vec2.build(SPEC, options={"hiden_size": 3})
    with pytest.raises(DlrunError, match=r"model\.options\.layerdrop: is a fact of the data or of the task"):
        wav2vec2.build(SPEC, options={"layerdrop": 0.1})
    for wrong in ({"num_attention_heads": 5}, {"conv_kernel": [3]}):
        with pytest.raises(DlrunError, match=r"model\.options: wav2vec2 does not work with"):
            wav2vec2.build(SPEC, options=TINY | wrong)
