"""Sound and series from the command line: trained without a file, then asked about files."""

import csv
import json

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile", reason="the extra 'audio' is not installed")


def predictions(dlrun, *arguments: str) -> list[dict]:
    code, out, err = dlrun("predict", *arguments, "--format", "jsonl")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_a_run_on_tones_names_the_class_of_a_file_of_a_folder_and_of_a_table(train, dlrun, tmp_path):
    run = train("data=tones", "data.size=60", "data.batch_size=16", "model=spectrogram_cnn", "model.channels=[4,8]",
                "data.augment={speed: {}, noise: {}, time_shift: {}, spec_augment: {}}")  # fmt: skip
    assert run.result["metrics"]["test/accuracy"] >= 0
    folder = tmp_path / "sounds"
    folder.mkdir()
    times = np.arange(22050) / 22050
    for index in range(2):
        soundfile.write(folder / f"{index}.wav", 0.3 * np.sin(2 * np.pi * (300 + 200 * index) * times), 22050)
    (tmp_path / "table.csv").write_text("audio\nsounds/1.wav\n")
    given = predictions(dlrun, run.id, str(folder))
    assert [row["input"] for row in given] == [str(folder / f"{index}.wav") for index in range(2)]
    alone = predictions(dlrun, run.id, str(folder / "1.wav"))[0]
    listed = predictions(dlrun, run.id, str(tmp_path / "table.csv"))[0]
    assert given[1]["label"] == alone["label"] == listed["label"]
    assert given[1]["probability"] == pytest.approx(alone["probability"], abs=1e-4)
    (folder / "broken.wav").write_bytes(b"no sound")
    code, _, err = dlrun("predict", run.id, str(folder))
    assert code == 4 and "broken.wav: cannot be decoded" in err


def test_a_run_on_waves_foretells_what_comes_after_a_table(train, dlrun, tmp_path):
    run = train("data=waves", "data.size=400", "data.window=24", "data.horizon=3", "data.batch_size=32",
                "task=forecasting", "model=linear_forecast")  # fmt: skip
    metrics = run.result["metrics"]
    assert run.result["goal"]["name"] == "mase" and {"test/mae_naive", "test/mae_linear"} <= metrics.keys()
    path = tmp_path / "hours.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["heat", "load"])
        rows.writerows([[10 + hour % 24, 0.5] for hour in range(26)])
    found = predictions(dlrun, run.id, str(path))
    assert [row["row"] for row in found] == [24, 25, 26] and len(found[2]["forecast"]["heat"]) == 3
    path.write_text("heat,load\n" + "1,2\n" * 30 + "x,3\n")
    code, _, err = dlrun("predict", run.id, str(path))
    assert code == 4 and "hours.csv, row 30: 'heat' is no number: 'x'" in err
    path.write_text("heat,load\n1,2\n")
    code, _, err = dlrun("predict", run.id, str(path))
    assert code == 4 and "has 1 rows; the run looks back on 24" in err
