"""Recordings from folders, zip files and tables: decoded, split, joined, spelled, and refused by row."""

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.contracts import NO_TARGET, DataSpec
from dlrun.data import speech
from dlrun.errors import DlrunError, Exit
from dlrun.tokens import CHARACTERS_FILE, Characters, to_texts

soundfile = pytest.importorskip("soundfile", reason="the extra 'audio' is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build(path, **settings):
    spec = settings.pop("spec", None)
    settings = {"sample_rate": 8000, "bands": 20} | settings
    return speech.build(SimpleNamespace(seed=0, assets=None, spec=spec), path=str(path), **settings)


def tone(index: int = 0, seconds: float = 0.1, rate: int = 8000) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (300 + 40 * index) * times)).astype(np.float32)


def content(samples: np.ndarray, rate: int = 8000, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def folders(place: Path, count: int = 6) -> Path:
    """count recordings each of "no" and "yes", under names like 0_anna_3.wav."""
    for label, word in enumerate(("no", "yes")):
        (place / word).mkdir(parents=True)
        for take in range(count):
            speaker = ("anna", "ben")[take % 2]
            (place / word / f"{label}_{speaker}_{take}.wav").write_bytes(content(tone(take, 0.1 + 0.01 * take)))
    return place


def table(place: Path, rows: list[dict]) -> Path:
    """A table of json lines beside its recordings. Each row has its samples, or the bytes of its file."""
    place.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, row in enumerate(rows):
        given = row.pop("audio", tone(index))
        name = f"{index}.wav"
        (place / name).write_bytes(given if isinstance(given, bytes) else content(given))
        lines.append(json.dumps({"file": name} | row))
    (place / "rows.jsonl").write_text("\n".join(lines))
    return place / "rows.jsonl"


def whole(split) -> dict:
    return split.gather(torch.arange(len(split)))


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_kind_of_file_is_decoded_mixed_and_resampled(kind, tmp_path):
    both = np.stack([tone(2, 0.5, 16000), tone(2, 0.5, 16000) * 0.5], axis=1)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for take in range(3):
            (tmp_path / label / f"{take}.{kind.lower()}").write_bytes(content(both, 16000, kind))
    dataset = build(tmp_path, valid_fraction=0.0, test_fraction=0.0)
    batch = whole(dataset.splits["train"])
    assert dataset.spec.labels == ("a", "b") and batch["audio"].dtype == torch.int16
    found = batch["audio"][0].float() / 32768
    expected = torch.from_numpy(0.75 * tone(2, 0.5))
    if kind in ("WAV", "FLAC"):
        assert len(found) == 4000
        torch.testing.assert_close(found[200:-200], expected[200:-200], atol=3e-3, rtol=0)
    else:
        assert found[1000:3000].square().mean() == pytest.approx(float(expected[1000:3000].square().mean()), rel=0.1)


def test_a_pattern_makes_columns_of_names_and_a_column_makes_splits(tmp_path):
    folders(tmp_path / "data")
    dataset = build(
        tmp_path / "data",
        file_pattern=r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav",
        target="digit",
        split_column="take",
        test_values=[0, 1],
        valid_values=[2],
    )
    assert dataset.spec.labels == ("0", "1") and dataset.spec.sizes["classes"] == 2
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "valid": 2, "test": 4}
    assert whole(dataset.splits["test"])["audio_lengths"].tolist() == [800, 880, 800, 880]
    assert whole(dataset.splits["test"])["label"].tolist() == [0, 0, 1, 1]


def test_folders_of_splits_and_archives_are_read_alike(tmp_path):
    folders(tmp_path / "data" / "train")
    folders(tmp_path / "data" / "test", 2)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in sorted((tmp_path / "data").rglob("*.wav")):
            archive.write(file, file.relative_to(tmp_path / "data"))
    one, other = build(tmp_path / "data", valid_fraction=0.0), build(tmp_path / "data.zip", valid_fraction=0.0)
    assert one.spec.labels == other.spec.labels == ("no", "yes")
    assert {name: len(split) for name, split in one.splits.items()} == {"train": 12, "test": 4}
    for name in ("train", "test"):
        assert torch.equal(whole(one.splits[name])["audio"], whole(other.splits[name])["audio"])


def test_a_metadata_table_of_an_archive_gives_transcripts(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(
            "set/metadata.csv", "file_name,transcription\n" + "".join(f"{n}.wav,Tone {n}\n" for n in "abc")
        )
        for name in "abc":
            archive.writestr(f"set/{name}.wav", content(tone()))
    dataset = build(tmp_path / "data.zip", valid_fraction=0.0, test_fraction=0.0, lower=True)
    assert dataset.spec.target == "targets" and dataset.spec.sizes["characters"] == 9
    assert to_texts(whole(dataset.splits["train"])["reference"]) == ["tone a", "tone b", "tone c"]


def test_bytes_in_a_table_are_read_and_the_run_is_found_again(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"audio": {"bytes": content(tone(index)), "path": f"{index}.wav"}, "label": "ab"[index % 2]}
            for index in range(10)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    dataset = build(tmp_path / "data.parquet", valid_size=2, test_size=2, features="mfcc", coefficients=13)
    assert dataset.spec.sizes["features"] == 13
    again = build(tmp_path / "data.parquet", valid_size=2, test_size=2, spec=dataset.spec)
    assert again.spec is dataset.spec and again.fingerprint == dataset.fingerprint
    encoded = dataset.inputs.encode([rows[3], {"audio": content(tone(3))}])
    assert torch.equal(encoded["audio"][0], encoded["audio"][1])
    assert dataset.inputs.prepare(encoded)["spectrogram"].shape[2] == 13


# ---------------------------------------------------------------- transcripts


def test_transcripts_are_spelled_by_number_and_spelled_back(tmp_path):
    path = table(tmp_path / "data", [{"text": text} for text in ("ab  ba", "b", "a b", "ab")])
    dataset = build(path, valid_fraction=0.0, test_fraction=0.0)
    batch = whole(dataset.splits["train"])
    assert batch["targets"].tolist()[0] == [2, 3, 1, 3, 2] and batch["targets"].tolist()[1] == [3, *[NO_TARGET] * 4]
    assert batch["num_targets"].tolist() == [5, 1, 3, 2] and to_texts(batch["reference"])[0] == "ab ba"
    characters = Characters.from_json(dataset.spec.files[CHARACTERS_FILE])
    assert characters.decode(batch["targets"].tolist()[0]) == "ab ba" and characters.size == 4
    with pytest.raises(DlrunError, match=r"characters.json: is no list of characters"):
        Characters.from_json(b"[]")


def test_recordings_of_one_speaker_are_joined_and_the_split_is_kept(tmp_path):
    rows = [{"text": str(index % 10), "speaker": "xy"[index // 20], "part": "test" if index % 4 == 0 else "rest",
             "audio": tone(index, 0.05 + 0.001 * index)} for index in range(40)]  # fmt: skip
    path = table(tmp_path / "data", rows)
    dataset = build(path, transcript="text", join=[3, 6], join_rounds=2, split_column="part", test_values=["test"],
                    valid_fraction=0.0)  # fmt: skip
    lengths = {400 + 8 * index: index for index in range(40)}
    for name, expected, rounds in (("train", {i for i in range(40) if i % 4}, 2), ("test", set(range(0, 40, 4)), 1)):
        batch = whole(dataset.splits[name])
        texts = [text.split() for text in to_texts(batch["reference"])]
        assert all(3 <= len(text) <= 6 for text in texts)
        assert sum(map(len, texts)) == rounds * len(expected)
        total = sum(length for length, index in lengths.items() if index in expected)
        assert int(batch["audio_lengths"].sum()) == rounds * total
    again = build(path, transcript="text", join=[3, 6], join_rounds=2, split_column="part", test_values=["test"],
                  valid_fraction=0.0)  # fmt: skip
    assert again.fingerprint == dataset.fingerprint
    assert "test: 2 utterances of 3 to 6 recordings" in dataset.notes
    with pytest.raises(DlrunError, match=r"rows\.jsonl: no speaker of test has 6 recordings to join"):
        build(path, transcript="text", join=[6, 6], split_column="part", test_values=["test"], valid_fraction=0.0)


# ---------------------------------------------------------------- bad input

BAD = {
    "the recording has no samples": content(np.zeros(0, dtype=np.float32)),
    "the file is empty": b"",
    "cannot be decoded": b"no sound at all",
    "sample 3 is not a finite number": None,
    "a rate of 44101 Hz cannot be resampled to 16000 Hz": content(tone(0, 0.1, 44101), 44101),
    "1.0 s are longer than data.max_seconds=0.5": content(tone(0, 1.0)),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_recording_is_named_or_skipped(reason, tmp_path):
    file = io.BytesIO()
    samples = tone()
    samples[3] = np.nan
    soundfile.write(file, samples, 8000, format="WAV", subtype="FLOAT")
    bad = BAD[reason] if BAD[reason] is not None else file.getvalue()
    rows = [{"label": "ab"[index % 2]} | ({"audio": bad} if index == 3 else {}) for index in range(8)]
    path = table(tmp_path / "data", rows)
    settings = {"sample_rate": 16000, "max_seconds": 0.5, "valid_fraction": 0.0, "test_fraction": 0.0}
    with pytest.raises(DlrunError, match=rf"rows.jsonl, row 3 \(3.wav\): .*{reason}") as caught:
        build(path, **settings)
    assert caught.value.code == Exit.DATA and "data.on_bad=skip" in caught.value.hint
    dataset = build(path, on_bad="skip", **settings)
    assert whole(dataset.splits["train"])["id"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert "1 row that cannot be read is left out; the first is rows.jsonl, row 3" in " ".join(dataset.notes)


def test_a_recording_without_a_class_is_named_or_skipped(tmp_path):
    path = table(tmp_path / "data", [{"label": None if index == 3 else "ab"[index % 2]} for index in range(8)])
    settings = {"sample_rate": 16000, "valid_fraction": 0.0, "test_fraction": 0.0}
    with pytest.raises(DlrunError, match=r"1 row has no label in column 'label' \(the first: row 3\)") as caught:
        build(path, **settings)
    assert "data.on_bad=skip" in caught.value.hint
    dataset = build(path, on_bad="skip", **settings)
    assert whole(dataset.splits["train"])["id"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert dataset.spec.labels == ("a", "b")


def test_the_length_of_a_recording_is_looked_at_before_it_is_resampled(tmp_path, monkeypatch):
    from dlrun.data import _sound

    monkeypatch.setattr(_sound, "resampled", lambda *given: pytest.fail("a recording that is too long was resampled"))
    path = table(tmp_path / "data", [{"label": "a", "audio": content(np.zeros(60, dtype=np.float32), 1)}])
    with pytest.raises(DlrunError, match=r"row 0 \(0.wav\): 60\.0 s are longer than data\.max_seconds=30"):
        build(path)


def test_a_row_without_its_class_as_transcript_is_a_bad_row(tmp_path):
    import datasets

    features = datasets.Features({"file": datasets.Value("string"), "word": datasets.ClassLabel(names=["no", "yes"])})
    table(tmp_path, [{} for _ in range(5)])
    rows = {"file": [str(tmp_path / f"{index}.wav") for index in range(5)], "word": [0, 1, None, 1, 0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "rows.parquet")
    settings = {"transcript": "word", "valid_fraction": 0.0, "test_fraction": 0.0}
    with pytest.raises(DlrunError, match=r"rows\.parquet, row 2: there is no class in column 'word'"):
        build(tmp_path / "rows.parquet", **settings)
    dataset = build(tmp_path / "rows.parquet", on_bad="skip", **settings)
    assert to_texts(whole(dataset.splits["train"])["reference"]) == ["no", "yes", "yes", "no"]


def test_a_missing_file_and_an_unknown_character_are_rows_of_their_own(tmp_path):
    rows = [{"text": "abc"[index % 3], "part": "x"} for index in range(6)] + [{"text": "aé", "part": "y"}]
    path = table(tmp_path / "data", rows)
    settings = {"transcript": "text", "split_column": "part", "test_values": ["y"], "valid_fraction": 0.0}
    with pytest.raises(DlrunError, match=r"rows.jsonl, row 6: no character of the training transcripts is 'é'"):
        build(path, **settings)
    with pytest.raises(DlrunError, match="there is no row of test that can be read"):
        build(path, on_bad="skip", **settings)
    (tmp_path / "data" / "2.wav").unlink()
    with pytest.raises(DlrunError, match=r"rows.jsonl, row 2 \(2.wav\): no such file"):
        build(path, **settings)


def test_frames_of_whisper_are_not_normalised_and_are_found_again(tmp_path):
    settings = {"features": "whisper", "sample_rate": 16000, "bands": 80}
    dataset = build(folders(tmp_path / "data"), **settings)
    assert dataset.spec.assets["mean"] == [0.0] * 80 and dataset.spec.assets["std"] == [1.0] * 80
    assert dataset.spec.sizes["features"] == 80
    batch = dataset.inputs.prepare(whole(dataset.splits["train"]))
    own = batch["spectrogram"][0, : batch["frames"][0]]
    assert float(own.max() - own.min()) <= 2.0001 and bool((batch["frames"] > 10).all())
    again = build(tmp_path / "data", **settings, spec=dataset.spec)
    assert again.fingerprint == dataset.fingerprint
    for wrong, says in (
        ({"normalise": "recording"}, "data.normalise: frames of data.features=whisper have a scale of their own"),
        ({"sample_rate": 8000}, "data.sample_rate: 8000 does not go with data.features=whisper"),
        ({"hop_ms": 12.5}, "data.hop_ms: 12.5 does not go with data.features=whisper"),
        ({"bands": 0}, r"data.bands: 0 is not in 1\.\.128"),
    ):
        with pytest.raises(DlrunError, match=says):
            build(tmp_path / "data", **settings | wrong)


def test_settings_that_do_not_fit_are_refused(tmp_path):
    folders(tmp_path / "data")
    for settings, says in (
        ({"join": [3, 6]}, "data.join: joins recordings with a transcript"),
        ({"join": [6, 3], "transcript": "label"}, r"data.join: \[6, 3\] is not \[FEWEST, MOST\]"),
        ({"split_column": "label"}, "data.split_column goes with data.valid_values or data.test_values"),
        ({"split_column": "label", "test_values": ["yess"]}, "data.test_values: no row has 'yess' in column 'label'"),
        ({"split_column": "take", "test_values": [1]}, "data.split_column: data train has no column 'take'"),
        ({"file_pattern": "("}, "data.file_pattern: is no regular expression"),
        ({"file_pattern": r"\d"}, "data.file_pattern: has no named group"),
        ({"file_pattern": "(?P<x>z)"}, "data.file_pattern: no/0_anna_0.wav does not fit"),
        ({"target": "lable"}, "data.target: data train has no column 'lable'"),
        ({"audio": "label", "target": "audio"}, "every row|cannot|no such file"),
        ({"audio": "adio"}, "data.audio: data train has no column 'adio'"),
        ({"target": "label", "transcript": "label"}, "data.target and data.transcript are both set"),
        ({"max_seconds": 0.0}, "data.max_seconds: 0.0 is not above 0"),
        ({"splits": {"train": "nope"}}, "data.splits.train: no folder is called 'nope'"),
    ):
        with pytest.raises(DlrunError, match=says):
            build(tmp_path / "data", **settings)
    with pytest.raises(DlrunError, match=r"data.path: no such file or folder"):
        build(tmp_path / "nowhere.csv")


def test_a_spec_of_sound_can_be_stored(tmp_path):
    dataset = build(folders(tmp_path / "data"))
    assert DataSpec.from_json(dataset.spec.to_json()) == dataset.spec
