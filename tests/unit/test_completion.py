"""What the shell offers after TAB."""

from pathlib import Path

import pytest

from dlrun import runs
from dlrun.commands import _completion as completion


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def offered(word: str, monkeypatch: pytest.MonkeyPatch, *before: str) -> list[str]:
    """After `dlrun train <before> <word>`, in zsh or fish, which leave words whole."""
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(["dlrun", "train", *before, word]))
    return completion.overrides(word)


def test_a_group_is_offered_with_both_its_endings(monkeypatch):
    assert offered("mod", monkeypatch) == ["model=", "model."]
    assert {"task=", "data.", "seed=", "experiment="} <= set(offered("", monkeypatch))
    assert offered("exp", monkeypatch)[0] == "experiment="


def test_choices_of_a_group_are_offered(monkeypatch):
    found = offered("model=resnet", monkeypatch)
    assert {"model=resnet20", "model=resnet56"} <= set(found)
    assert all(text.startswith("model=resnet") for text in found)


def test_settings_of_the_default_choice_and_of_the_one_typed_are_offered(monkeypatch):
    assert "optimizer.weight_decay=" in offered("optimizer.", monkeypatch)
    assert "optimizer.nesterov=" not in offered("optimizer.", monkeypatch)
    assert offered("optimizer.nes", monkeypatch, "optimizer=sgd")[0] == "optimizer.nesterov="
    assert "data.batch_size=" in offered("data.b", monkeypatch)
    assert offered("transfer.fr", monkeypatch)[0] == "transfer.from="


def test_values_of_a_setting_are_offered(monkeypatch):
    assert offered("train.precision=", monkeypatch) == [
        "train.precision=fp32",
        "train.precision=bf16",
        "train.precision=fp16",
    ]
    assert offered("model.activation=ge", monkeypatch) == ["model.activation=gelu"]
    assert offered("hardware.compile=t", monkeypatch) == ["hardware.compile=true"]
    assert offered("model.depth=", monkeypatch, "model=resnet20") == ["model.depth=20"]


def test_the_only_unfinished_word_comes_with_its_value_so_that_no_space_is_put_behind(monkeypatch):
    assert offered("model.dept", monkeypatch, "model=resnet20") == ["model.depth=", "model.depth=20"]


def test_augmentations_and_their_settings_are_offered(monkeypatch):
    assert "data.augment.flip={}" in offered("data.augment.f", monkeypatch)
    assert offered("data.augment.random_crop.pad", monkeypatch)[0] == "data.augment.random_crop.padding="
    assert offered("data.augment.random_crop.nothing=", monkeypatch) == []


def test_a_users_conf_and_components_are_offered(tmp_path, monkeypatch):
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text("name: mine\n")
    (tmp_path / "parts/models").mkdir(parents=True)
    (tmp_path / "parts/models/mine.py").write_text("def build(spec, *, zeal: int = 3): ...\n")
    assert "model=mine" in offered("model=m", monkeypatch)
    assert offered("model.z", monkeypatch, "--components", "parts", "model=mine") == ["model.zeal=", "model.zeal=3"]


def test_what_cannot_be_read_offers_nothing(tmp_path, monkeypatch):
    assert offered("model.d", monkeypatch, "--components", "nowhere") == []
    assert offered("nothing.", monkeypatch) == offered("nothing.x=", monkeypatch) == []


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["model", "=", "resnet2"], "resnet2", ["resnet20"]),
        (["train.precision", "="], "", ["fp32", "bf16", "fp16"]),
        (["model", "=", "resnet20", "model.dept"], "model.dept", ["model.depth=", "model.depth=20"]),
    ],
)
def test_bash_which_takes_the_equals_sign_for_a_word_gets_the_rest_of_it(words, incomplete, expected, monkeypatch):
    monkeypatch.setenv("COMP_WORDS", "\n".join(["dlrun", "train", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words) + 1))
    assert completion.overrides(incomplete) == expected


def test_runs_are_offered_by_id_name_and_latest(tmp_path):
    runs.create(tmp_path / "runs", runs.RunRecord("abcd" * 8, "train", name="first", status="FINISHED"))
    assert completion.run_names("") == ["latest", "abcdabcd", "first"]
    assert completion.run_names("ab") == ["abcdabcd"]


def test_kinds_and_names_are_offered():
    assert completion.kinds("t") == ["task", "transfer", "train", "tracking"]
    assert completion.kinds("aug") == ["augment"]
    assert "resnet20" in completion.names("model", "res") and completion.names("nothing", "") == []
    assert "random_crop" in completion.names("augment", "random")
