"""wav2vec 2.0: the library's network on recordings, its lengths, its weights by their published names."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.augment import spec_augment
from dlrun.contracts import DataSpec, FromLibrary
from dlrun.data import speech, tones
from dlrun.errors import DlrunError
from dlrun.models import wav2vec2
from dlrun.tasks import speech_recognition
from dlrun.tokens import CHARACTERS_FILE, Characters

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


def test_what_stands_after_a_recording_has_no_part_in_what_is_said_of_it():
    torch.manual_seed(0)
    model = wav2vec2.build(SPEC, options=TINY).eval()
    assert isinstance(model, FromLibrary) and model.architecture == "wav2vec2"
    samples = torch.randn(2, 400)
    samples[1, 250:] = 0
    logits, frames = model(samples, torch.tensor([400, 250]))
    alone, own = model(samples[1:, :250], torch.tensor([250]))
    assert logits.shape == (2, int(frames[0]), SPELLED.size) and int(frames[1]) == int(own[0]) == alone.shape[1]
    torch.testing.assert_close(logits[1, : own[0]], alone[0], atol=1e-4, rtol=1e-3)


def test_published_weights_are_found_by_their_names():
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model = wav2vec2.build(SPEC, options=TINY)
    published = Wav2Vec2Model(Wav2Vec2Config(**TINY)).state_dict()
    own = model.own_names(list(published))
    assert own.keys() == published.keys() and set(own.values()) <= model.state_dict().keys()
    with_prefix = model.own_names([f"wav2vec2.{name}" for name in published])
    assert set(with_prefix.values()) == set(own.values())


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
    with pytest.raises(DlrunError, match="needs data with 'characters'"):
        wav2vec2.build(frames)
    spelled = DataSpec(("spectrogram", "frames"), "targets", {"characters": 3, "features": 8}, {})
    with pytest.raises(DlrunError, match="wav2vec2 needs samples; this data has spectrogram, frames"):
        wav2vec2.build(spelled)
    with pytest.raises(DlrunError, match="wav2vec2 has no setting 'hiden_size'"):
        wav2vec2.build(SPEC, options={"hiden_size": 3})
