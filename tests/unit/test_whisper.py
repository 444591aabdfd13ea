"""Whisper: the library's loss, its generation and its weights, transcripts of made tones, and what does not fit."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from dlrun.contracts import NO_TARGET, DataSpec, Exportable, FromLibrary, Pretrained, Publishable, Thorough, unit
from dlrun.data import tones
from dlrun.data._sound_inputs import SoundInputs
from dlrun.data._whisper_frames import WhisperFrames
from dlrun.decoding import Generates
from dlrun.errors import DlrunError
from dlrun.models import conformer, whisper
from dlrun.tasks import speech_recognition, speech_seq2seq
from dlrun.tokens import CHARACTERS_FILE, Characters, to_bytes, to_texts
from dlrun.transfer import _sources, finetune

pytest.importorskip("jiwer", reason="the extra 'audio' is not installed")
TINY = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
SPELLED = Characters.of(["ab c"])
SPEC = DataSpec(
    ("spectrogram", "frames"),
    "targets",
    {"characters": SPELLED.size, "features": 8, "length": 24, "target_length": 6},
    {"spectrogram": (24, 8), "frames": ()},
    files={CHARACTERS_FILE: SPELLED.to_json()},
)


def model_of(spec: DataSpec = SPEC, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    model = whisper.build(spec, options={**TINY, "init_std": 0.3}, **settings)
    with torch.no_grad():  # fresh weights say one character for ever: let what is heard and the place matter
        for name, weight in model.named_parameters():
            if "encoder_attn" in name:
                weight.mul_(2)
            elif "decoder.embed_positions" in name:
                weight.normal_()
    return model.eval()


def batch_of(texts: list[str], frames: int = 30) -> dict[str, torch.Tensor]:
    encoded = [SPELLED.encode(text) for text in texts]
    longest = max(map(len, encoded))
    generator = torch.Generator().manual_seed(1)
    return {
        "id": torch.arange(len(texts)),
        "spectrogram": torch.randn(len(texts), frames, 8, generator=generator),
        "frames": torch.full((len(texts),), frames),
        "targets": torch.tensor([row + [NO_TARGET] * (longest - len(row)) for row in encoded]),
        "num_targets": torch.tensor([len(row) for row in encoded]),
        "reference": to_bytes(texts),
    }


def librarys(model: torch.nn.Module) -> transformers.WhisperForConditionalGeneration:
    """The library's own with the same weights; it shifts labels itself, for which it wants a padding token."""
    config = transformers.WhisperConfig(**model.network.config.to_dict() | {"pad_token_id": 0})
    own = transformers.WhisperForConditionalGeneration(config)
    own.load_state_dict(model.network.state_dict())
    return own.eval()


def test_the_loss_is_the_librarys_mean_over_characters_and_ends():
    model, batch = model_of(), batch_of(["ab", "c a b", "b"])
    task = speech_seq2seq.build(SPEC)
    loss = task.loss(model, batch)
    assert loss.count == task.count(batch) == 2 + 5 + 1 + 3 and unit(task) == "tokens"
    labels = torch.full((3, 6), NO_TARGET)
    for row, text in enumerate(["ab", "c a b", "b"]):
        labels[row, : len(text) + 1] = torch.tensor([*SPELLED.encode(text), 0])
    said = librarys(model)(batch["spectrogram"].transpose(1, 2), labels=labels)
    assert float(loss.sum.detach()) / loss.count == pytest.approx(float(said.loss.detach()), rel=1e-5)
    outputs = task.outputs(model, batch)
    torch.testing.assert_close(outputs.fields["loss"].sum(), loss.sum.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_transcripts_are_those_that_the_librarys_generation_finds(beams):
    model, batch = model_of(), batch_of(["a"] * 8)
    task = speech_seq2seq.build(SPEC, beams=beams, length_penalty=0.0, max_tokens=5)
    searching = task.thorough() if beams > 1 else task
    said = searching.outputs(model, batch)
    found = transformers.GenerationMixin.generate(
        librarys(model), batch["spectrogram"].transpose(1, 2), decoder_input_ids=torch.zeros(8, 1, dtype=torch.int64),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=5, num_beams=beams, do_sample=False, length_penalty=0.0, early_stopping=False,
            eos_token_id=0, pad_token_id=0, decoder_start_token_id=0,
        ),
    )  # fmt: skip
    texts = []
    for row in found[:, 1:].tolist():
        numbers = row[: row.index(0)] if 0 in row else row
        texts.append(SPELLED.plain(SPELLED.decode(numbers)))
    assert to_texts(said.fields["text"]) == texts and len(set(texts)) > 1


def test_a_recording_is_heard_alike_alone_and_in_company():
    model = model_of()
    frames = torch.randn(2, 20, 8)
    frames[1, 11:] = 0
    tokens = torch.tensor([[0, 1, 2], [0, 3, 1]])
    together = model(frames, torch.tensor([20, 11]), tokens)
    alone = model(frames[1:, :11], torch.tensor([11]), tokens[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)
    longer = torch.cat([frames, torch.randn(2, 80, 8)], 1)
    torch.testing.assert_close(
        model(longer[:, :60], torch.tensor([60, 60]), tokens)[0], model(longer, torch.tensor([100, 100]), tokens)[0]
    )
    torch.testing.assert_close(model(frames, torch.tensor([20, 11])), together[:, :1], atol=1e-5, rtol=1e-4)
    assert isinstance(model, Exportable) and isinstance(model, Publishable)
    with pytest.raises(DlrunError, match="character by character, which is no single graph"):
        model.exportable()


def test_step_by_step_says_what_reading_a_transcript_at_once_does():
    model, batch = model_of(), batch_of(["ab c", "ab c"])
    tokens = torch.tensor([[0, 1, 4, 2], [0, 3, 3, 1]])
    whole = model(batch["spectrogram"], batch["frames"], tokens)
    logits, state = model.start(batch["spectrogram"], batch["frames"], tokens[:, 0])
    torch.testing.assert_close(logits, whole[:, 0], atol=1e-5, rtol=1e-4)
    for place in range(1, 4):
        logits, state = model.step(tokens[:, place], state)
        torch.testing.assert_close(logits, whole[:, place], atol=1e-5, rtol=1e-4)


def test_error_rates_are_there_where_transcripts_are_said():
    model, batch = model_of(), batch_of(["ab", "c"])
    judged_by_loss = speech_seq2seq.build(SPEC, goal="loss")
    outputs = judged_by_loss.outputs(model, batch)
    assert "text" not in outputs.fields and judged_by_loss.goal.metric == "loss"
    final = judged_by_loss.thorough()
    assert isinstance(judged_by_loss, Thorough) and not isinstance(final, Generates)
    outputs = final.outputs(model, batch)
    values: dict[str, float] = {}
    for metric in final.metrics():
        metric.update(outputs)
        values |= metric.compute()
    assert values.keys() == {"loss", "perplexity", "accuracy", "wer", "cer"}
    assert values["loss"] == pytest.approx(float(outputs.fields["loss"].sum().detach()) / 5)
    assert final.rows(outputs)[0].keys() >= {"id", "text", "truth", "loss"}
    unseen = {name: batch[name] for name in ("id", "spectrogram", "frames")}
    assert final.rows(final.outputs(model, unseen))[1].keys() == {"id", "text"}


# ---------------------------------------------------------------- a folder of the library


def written(folder, vocabulary: int = 30) -> transformers.WhisperForConditionalGeneration:
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        **TINY, vocab_size=vocabulary, num_mel_bins=8, max_source_positions=20, max_target_positions=40,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, begin_suppress_tokens=None,
    )  # fmt: skip
    network = transformers.WhisperForConditionalGeneration(config)
    network.generation_config.begin_suppress_tokens = None
    network.save_pretrained(folder)
    return network.eval()


class FromDisk:
    def weights(self, source: str):
        return _sources.read(source)


def test_a_folder_of_the_library_gives_sizes_and_weights(tmp_path):
    network = written(tmp_path, SPELLED.size)
    model = whisper.build(SPEC, path=str(tmp_path))
    assert isinstance(model, FromLibrary) and isinstance(model, Pretrained) and model.source == str(tmp_path)
    assert json.loads(next(iter(model.files.values())))["model_type"] == "whisper"
    result = finetune.build(model, SPEC, FromDisk(), str(tmp_path))
    assert result.missing == [] and result.head == ""
    x_BTF, tokens = torch.randn(2, 40, 8), torch.tensor([[0, 2], [0, 3]])
    said = model.eval()(x_BTF, torch.tensor([40, 40]), tokens)
    torch.testing.assert_close(said, network(x_BTF.transpose(1, 2), decoder_input_ids=tokens).logits)


def test_of_a_folder_with_another_vocabulary_all_but_its_embeddings_is_taken(tmp_path):
    written(tmp_path)
    model = whisper.build(SPEC, path=str(tmp_path))
    result = finetune.build(model, SPEC, FromDisk(), str(tmp_path))
    assert set(result.missing) == {"network.proj_out.weight", "network.model.decoder.embed_tokens.weight"}
    assert model.network.proj_out.weight.shape == (SPELLED.size, 16)
    assert model.network.proj_out.weight is model.network.model.decoder.embed_tokens.weight


def test_recordings_of_a_batch_are_heard_as_the_librarys_extractor_and_network_hear_them():
    frames = WhisperFrames(8)
    assets = {"audio_column": "audio", "spectrogram": frames.to_json(), "normalise": "training", "mean": [0.0] * 8,
              "std": [1.0] * 8}  # fmt: skip
    spec = DataSpec(SPEC.inputs, "targets", {**SPEC.sizes}, {}, assets=assets, files=SPEC.files)
    model = model_of(spec, max_frames=100)
    rng = np.random.default_rng(0)
    sounds = [(rng.normal(0, 4000, length)).astype(np.int16) for length in (12000, 5000)]
    audio = torch.zeros(2, 12000, dtype=torch.int16)
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = torch.from_numpy(sound)
    batch = SoundInputs(spec).prepare({"audio": audio, "audio_lengths": torch.tensor([12000, 5000])})
    tokens = torch.tensor([[0, 1, 2], [0, 3, 1]])
    said = model(batch["spectrogram"], batch["frames"], tokens)
    extractor = transformers.WhisperFeatureExtractor(8, chunk_length=1)
    heard = extractor([sound / 32768 for sound in sounds], sampling_rate=16000, return_tensors="pt")
    expected = model.network(heard["input_features"], decoder_input_ids=tokens).logits
    torch.testing.assert_close(said, expected, atol=1e-4, rtol=1e-3)
    first, _ = model.start(batch["spectrogram"], batch["frames"], tokens[:, 0])
    torch.testing.assert_close(first, expected[:, 0], atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- made tones, and what is refused


def test_a_few_steps_on_spoken_tones_lower_the_loss_and_a_new_recording_is_spelled():
    dataset = tones.build(SimpleNamespace(seed=0, assets=None), size=60, words=[1, 2])
    assert (
        dataset.spec.target == "targets"
        and dataset.spec.size("characters") == len(set("dipfallflatpeakrisetremble")) + 2
    )
    torch.manual_seed(0)
    task, model = speech_seq2seq.build(dataset.spec), whisper.build(dataset.spec, options=TINY)
    batch = dataset.inputs.prepare(dataset.splits["train"].gather(torch.arange(16)))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.sum.div(loss.count).backward()
        optimizer.step()
        losses.append(float(loss.sum.detach()))
    assert losses[-1] < 0.9 * losses[0]
    still = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert still == []
    sound = dataset.splits["test"].gather(torch.tensor([0]))["audio"][0].numpy()
    new = dataset.inputs.prepare(dataset.inputs.encode([{"audio": sound}]))
    assert isinstance(task.rows(task.outputs(model.eval(), new))[0]["text"], str)
    names = {"dip", "fall", "flat", "peak", "rise", "tremble"}
    said = [name for text in to_texts(batch["reference"]) for name in text.split()]
    assert set(said) <= names and max(len(text.split()) for text in to_texts(batch["reference"])) == 2


def test_what_does_not_fit_is_refused(tmp_path):
    written(tmp_path)
    classes = DataSpec(("spectrogram", "frames"), "label", {"classes": 3, "features": 8, "length": 24}, {})
    wide = DataSpec(SPEC.inputs, "targets", {**SPEC.sizes, "features": 40}, {}, files=SPEC.files)
    samples = DataSpec(("samples", "lengths"), "targets", {"characters": 4, "length": 24}, {})
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for build, says in (
        (lambda: whisper.build(classes), "needs data with 'characters'; this data set has classes=3"),
        (lambda: whisper.build(samples), "whisper needs frames of sound; this data has samples, lengths"),
        (lambda: whisper.build(wide, path=str(tmp_path)), "hears 8 bands; this data has 40"),
        (lambda: whisper.build(SPEC, path=str(tmp_path / "bert")), "describes a bert, not a whisper"),
        (lambda: whisper.build(SPEC, options={"d_modle": 3}), "whisper has no 'd_modle'"),
        (lambda: whisper.build(SPEC, options={"vocab_size": 3}), "model.options.vocab_size: is a fact of the data"),
        (lambda: whisper.build(SPEC, options={"d_model": 15}), "whisper does not work with d_model=15"),
        (lambda: whisper.build(SPEC, max_frames=0), "model.max_frames: expected at least 2, got 0"),
        (lambda: speech_seq2seq.build(SPEC, beams=0), "task.beams: 0 is not at least 1"),
        (lambda: speech_seq2seq.build(SPEC, label_smoothing=1.0), "task.label_smoothing: 1.0 is not in"),
        (lambda: tones.build(SimpleNamespace(seed=0, assets=None), words=[3]), "data.words: [3] is not [FEWEST, MOST]"),
    ):  # fmt: skip
        with pytest.raises(DlrunError) as caught:
            build()
        assert says in caught.value.message
    framewise = conformer.build(SPEC, depth=1, width=16, heads=2, kernel=5, channels=4)
    with pytest.raises(DlrunError, match="Conformer labels recordings or frames; speech_seq2seq needs a model"):
        speech_seq2seq.build(SPEC).loss(framewise, batch_of(["a"]))
    with pytest.raises(DlrunError, match="needs labels by frame"):
        speech_recognition.build(SPEC).loss(model_of(), batch_of(["a"]))
    short = whisper.build(SPEC, options={**TINY, "max_target_positions": 3})
    with pytest.raises(DlrunError, match="whisper says at most 3 tokens here, a transcript has 4") as caught:
        speech_seq2seq.build(SPEC).loss(short, batch_of(["abc"]))
    assert caught.value.hint == "model.options={max_target_positions: 8}"
