"""`dlrun export` on small runs: files that others read, checks that refuse, and a card that says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from dlrun import exporting, predictor
from dlrun._exporting_agreement import agreement
from dlrun.commands import _export_formats, _model_card
from dlrun.errors import DlrunError
from dlrun.tasks import classification, detection, forecasting, regression, segmentation, speech_recognition


def header(folder: Path) -> dict:
    """The YAML on top of a model card."""
    _, text, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(text)


# ---------------------------------------------------------------- formats


def test_an_onnx_file_says_what_the_run_says_of_raw_pixels(train, dlrun, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxscript")
    run = train("model=mlp", "train.duration=10 steps", "model.width=16")
    code, out, _ = dlrun("export", "latest", "--output", str(tmp_path / "onnx"), "--check", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["run_id"] == run.id and facts["opset"] >= 18 and facts["preprocessing"] == "in the file"
    assert facts["inputs"] == [{"name": "image", "type": "uint8", "shape": ["batch", 1, 8, 8]}]
    assert facts["outputs"] == [{"name": "logits", "type": "float32", "shape": ["batch", 10]}]
    assert facts["agreement"]["worst"] <= facts["agreement"]["allowed"]
    assert facts["check"]["metric"] == "accuracy" and facts["check"]["split"] == "valid"
    assert facts["check"]["exported"] == facts["check"]["model"]

    known = predictor.load(run.folder)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    expected = known.predict_rows([{"image": image} for image in pixels]).fields["log_probabilities"]
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    said = torch.from_numpy(session.run(["logits"], {"image": pixels[:, None]})[0])
    torch.testing.assert_close(said.log_softmax(1), expected, atol=1e-4, rtol=1e-4)


def test_a_torch_file_holds_no_rows_of_the_data_and_says_what_the_run_says(train, dlrun, tmp_path):
    run = train()
    code, out, _ = dlrun("export", run.short_id, "--format", "torch", "--output", str(tmp_path / "out"), "--check")
    assert code == 0 and "agrees   with the model" in out and "check    valid/accuracy" in out
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert program.example_inputs is None
    assert program.module()(image=torch.zeros(3, 1, 8, 8, dtype=torch.uint8))[0].shape == (3, 10)


def test_safetensors_are_the_best_weights_bit_for_bit_with_what_describes_them(train, dlrun, tmp_path):
    from safetensors.torch import load_file

    run, folder = train(), tmp_path / "out"
    assert dlrun("export", "latest", "--format", "safetensors", "--output", str(folder), "--check")[0] == 0
    model = predictor.load(run.folder).model
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert json.loads((folder / "config.json").read_text())["dlrun"]["model"] == {"name": "logistic", "copies": 1}
    assert json.loads((folder / "labels.json").read_text()) == [str(digit) for digit in range(10)]
    assert (folder / "spec.json").is_file()


def test_an_mlflow_folder_predicts_when_the_run_is_gone(train, dlrun, tmp_path):
    import shutil

    from dlrun import serving

    run, folder = train(), tmp_path / "out"
    before = predictor.load(run.folder).predict_rows([{"image": np.zeros((8, 8), np.uint8)}])
    assert dlrun("export", "latest", "--format", "mlflow", "--output", str(folder), "--check")[0] == 0
    shutil.rmtree(run.folder)
    served = serving._load_pyfunc(str(folder))
    rows = served.predict([{"image": np.zeros((8, 8), np.uint8).tolist()}])
    assert rows[0]["label"] == str(int(before.fields["log_probabilities"].argmax()))
    assert "signature" in json.loads((folder / "MLmodel").read_text())
    assert not list(folder.rglob("optimizer.safetensors")) and not (folder / "metrics.jsonl").exists()


def test_an_architecture_of_our_own_is_no_transformers_folder(train, dlrun, tmp_path):
    train()
    code, _, err = dlrun("export", "latest", "--format", "transformers", "--output", str(tmp_path / "out"))
    assert code == 2 and "Logistic is no architecture of the transformers library" in err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the folder


def test_a_folder_that_is_there_is_refused_and_only_an_export_is_replaced(train, dlrun, tmp_path):
    train()
    folder = tmp_path / "out"
    arguments = ("export", "latest", "--format", "safetensors", "--output", str(folder))
    assert dlrun(*arguments)[0] == 0
    code, _, err = dlrun(*arguments)
    assert code == 2 and "is there already" in err and "--force" in err
    (folder / "old").write_text("")
    assert dlrun(*arguments, "--force")[0] == 0
    assert not (folder / "old").exists()
    (folder / "export.json").unlink()
    code, _, err = dlrun(*arguments, "--force")
    assert code == 2 and "is no export of dlrun" in err and (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_is_not_the_model_ends_with_seven_and_leaves_no_folder(train, dlrun, tmp_path, monkeypatch):
    train()
    monkeypatch.setattr(_export_formats, "METRIC_TOLERANCE", -1.0)
    code, _, err = dlrun("export", "latest", "--format", "safetensors", "--output", str(tmp_path / "out"), "--check")
    assert code == 7 and "valid/accuracy of the file is" in err and "nothing was written" in err
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# ---------------------------------------------------------------- the card


def test_the_card_says_what_the_runs_files_say(train, dlrun, tmp_path):
    run = train("name=first")
    arguments = ("--format", "safetensors", "--output", str(tmp_path / "out"), "--license", "mit")
    assert dlrun("export", "first", *arguments)[0] == 0
    card, result = (tmp_path / "out" / "README.md").read_text(), run.result
    top = header(tmp_path / "out")
    assert top["license"] == "mit" and top["pipeline_tag"] == "image-classification" and top["library_name"] == "dlrun"
    (first, second) = top["model-index"][0]["results"]
    assert (first["dataset"]["split"], second["dataset"]["split"]) == ("test", "valid")
    stated = {metric["name"]: metric["value"] for metric in first["metrics"]}
    assert stated["test/accuracy"] == result["metrics"]["test/accuracy"]
    for expected in ("# first", run.id, "## Energy", "## Limits", "## Licence", "optimizer.lr", "`digits`"):
        assert expected in card
    manifest = json.loads((run.checkpoints / "best" / "MANIFEST.json").read_text())
    assert manifest["files"]["weights.safetensors"]["sha256"] in card
    assert str(tmp_path) not in card and str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()


def test_the_card_of_a_compression_that_could_not_be_timed_leaves_times_out():
    metrics = {"valid/ap50": 0.5}
    before = {
        "bytes": 4000,
        "parameters": 1000,
        "nonzero": 1000,
        "macs": None,
        "metrics": metrics,
        "latency_seconds": None,
    }
    after = {**before, "bytes": 1000, "goal_interval": None}
    result = {"before": before, "after": after, "ratios": {"bytes": 4.0}, "remarks": ["boxes are not resampled"],
              "goal": {"split": "valid", "name": "ap50", "value": 0.5},
              "steps": [{"name": "quantize_weights", "options": {"format": "int8", "ignore": None}}]}  # fmt: skip
    [card] = _model_card._compression(result)
    assert "By `quantize_weights` (format=int8)." in card
    assert (
        "| bytes of the file | 4,000 | 1,000 | 4.00 x better |" in card and "| valid/ap50 | 0.5000 | 0.5000 |" in card
    )
    assert "timed" not in card and card.endswith("\n\nBoxes are not resampled.")
    assert list(_model_card._compression({"goal": {}})) == []  # of a run that was not compressed


@pytest.mark.parametrize(
    ("room", "kind", "said"),
    [
        (detection.DetectionTask, "image", "object-detection"),
        (segmentation.SegmentationTask, "image", "image-segmentation"),
        (classification.ClassificationTask, "table", "tabular-classification"),
        (classification.ClassificationTask, "audio", "other"),
        (regression.RegressionTask, "image", "image-regression"),
        (speech_recognition.SpeechRecognitionTask, "audio", "automatic-speech-recognition"),
        (forecasting.ForecastingTask, "series", "other"),
    ],
)
def test_the_card_calls_a_task_what_the_hub_does(room, kind, said):
    task = room.__new__(room)
    assert _model_card._kind(SimpleNamespace(task=task, spec=SimpleNamespace(assets={"kind": kind}))) == said


# ---------------------------------------------------------------- graphs


class Moody(nn.Module):
    """Answers by what it is told: no graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_the_card_of_a_model_that_says_texts_says_that_search_is_not_in_the_graph(train, dlrun, tmp_path):
    train("task=language_model", "data=number_words", "data.kind=language", "data.size=100", "data.context=16",
          "model=gpt", "model.width=16", "model.depth=1", "train.duration=2 steps")  # fmt: skip
    assert dlrun("export", "latest", "--format", "torch", "--output", str(tmp_path / "out"))[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The graph is the forward pass" in card and "(teacher forcing). It is not the step-wise decoder" in card
    train()
    assert dlrun("export", "latest", "--format", "torch", "--output", str(tmp_path / "image"))[0] == 0
    assert "step-wise decoder" not in (tmp_path / "image" / "README.md").read_text()


def test_a_model_that_is_no_graph_is_refused_with_a_sentence(train):
    run = train()
    source = exporting.Source.of(predictor.load(run.folder))
    with pytest.raises(DlrunError, match="Moody is no graph of tensors") as refused:
        exporting.traced(exporting.Source(Moody(), *[getattr(source, name) for name in
                                                     ("inputs", "spec", "task", "batch_size", "load")]))  # fmt: skip
    assert refused.value.code == 2 and "exportable()" in refused.value.hint


def test_agreement_sees_another_model(train):
    run = train()
    source = exporting.Source.of(predictor.load(run.folder))
    traced = exporting.traced(source)
    module = traced.program.module()
    assert agreement(traced, lambda given: module(**given)).holds
    assert not agreement(traced, lambda given: [module(**given)[0] + 0.1]).holds
    with pytest.raises(DlrunError, match="the graph gives"):
        agreement(traced, lambda given: [module(**given)[0][:, :3]])


def test_texts_are_cut_with_their_lengths():
    batch = {"tokens": torch.arange(8).reshape(2, 4), "lengths": torch.tensor([4, 1])}
    made = exporting.cut(batch, {"tokens": "lengths"}, lambda length: length // 2)
    assert made["tokens"].tolist() == [[0, 1], [4, 5]] and made["lengths"].tolist() == [2, 1]


# ---------------------------------------------------------------- ensembles


def test_the_graph_of_an_average_says_what_the_ensemble_says(train, dlrun, tmp_path):
    run = train()
    known = predictor.load(run.folder)
    from dlrun.ensembles._fields import Mean

    batch = known.inputs.prepare(known.dataset.splits["valid"].gather(torch.arange(6)))
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    said = [known.task.outputs(model, batch) for model in (known.model, other)]
    from dlrun._exporting_ensemble import MeanOf

    for of in ("probabilities", "logits"):
        mean = MeanOf([known.model, other], [3.0, 1.0], "classes", of, None)
        expected = Mean(of)(said, [3.0, 1.0]).fields["log_probabilities"]
        found = known.task.outputs(mean, batch).fields["log_probabilities"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        cooled = MeanOf([known.model, other], [3.0, 1.0], "classes", of, 2.0)
        found = known.task.outputs(cooled, batch).fields["log_probabilities"]
        torch.testing.assert_close(found, (expected / 2).log_softmax(1), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_static_int8_run_goes_out_as_the_onnx_file_that_it_is(train, dlrun, tmp_path, short_timing):
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    run = train("model=cnn", "model.channels=[8,16]", "model.convolutions=1")
    code, _, err = dlrun("compress", run.id, "compression=quantize_static", "compression.quantize_static.examples=32")
    assert code == 0, err
    code, out, err = dlrun("export", "latest", "--output", str(tmp_path / "out"), "--check", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["inputs"] == [{"name": "image", "type": "float32", "shape": ["batch", 1, 8, 8]}]
    assert facts["outputs"] == [{"name": "logits", "type": "float32", "shape": ["batch", 10]}]
    assert facts["preprocessing"] == "outside" and facts["agreement"]["worst"] == 0
    file = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(file)
    spec = json.loads((tmp_path / "out" / "spec.json").read_text())
    assert spec["inputs"] == ["image"] and "spec.json" in facts["files"]
    card, seconds = (tmp_path / "out" / "README.md").read_text(), run.result["seconds"]
    assert "The weights are those of the best" not in card and "as spec.json beside it says" in card
    assert f"is of run {run.short_id} (`dlrun train`)" in card and f"- time: {seconds:.0f} s" in card
    assert {tensor.data_type for tensor in file.graph.initializer} >= {onnx.TensorProto.INT8}
    assert json.loads(file.metadata_props[0].value) == [str(digit) for digit in range(10)]
    code, _, err = dlrun("export", "latest", "--format", "torch", "--output", str(tmp_path / "torch"))
    assert code == 2 and "is a finished ONNX graph" in err and "--format onnx" in err


@pytest.mark.slow
@pytest.mark.parametrize("words", [("cluster",), ("quantize_weights", "compression.quantize_weights.format=int4")])
def test_weights_in_codebooks_and_in_few_bits_go_out_written_out(train, dlrun, tmp_path, short_timing, words):
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    run = train("model=mlp")
    assert dlrun("compress", run.id, f"compression={words[0]}", *words[1:])[0] == 0
    code, out, err = dlrun("export", "latest", "--output", str(tmp_path / "out"), "--check", "--json")
    assert code == 0, err
    assert json.loads(out)["check"]["exported"] == json.loads(out)["check"]["model"]


@pytest.mark.slow
def test_an_ensemble_is_one_file_and_is_no_file_of_one_models_weights(train, dlrun, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    first, second = train("data.split_seed=0"), train("data.split_seed=0", "seed=1")
    assert dlrun("ensemble", first.id, second.id)[0] == 0
    code, out, _ = dlrun("export", "latest", "--output", str(tmp_path / "out"), "--check", "--json")
    assert code == 0 and json.loads(out)["check"]["metric"] == "accuracy"
    code, _, err = dlrun("export", "latest", "--format", "safetensors", "--output", str(tmp_path / "other"))
    assert code == 2 and "holds several models" in err and not (tmp_path / "other").exists()


# ---------------------------------------------------------------- texts


def test_a_folder_of_transformers_is_compared_without_the_weights_that_it_should_bring(tmp_path, monkeypatch):
    from tests.unit.fake_compression import texts_net

    from dlrun import _exporting_weights as weights

    model = texts_net("transformers")
    import transformers  # only now: the library puts another module in its own place while it loads a model

    read = SimpleNamespace(state_dict=dict)  # a file that lost all of them
    library = SimpleNamespace(from_pretrained=lambda *_, **__: SimpleNamespace(eval=lambda: read))
    monkeypatch.setattr(transformers, "AutoModel", library)
    source: Any = SimpleNamespace(model=model)
    found = weights.read_transformers(source, tmp_path, {"auto_class": "AutoModel", "head": None})
    assert not any(tensor.count_nonzero() for tensor in found.parameters())
    assert any(tensor.count_nonzero() for tensor in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "kind"), [("cls", "AutoModelForSequenceClassification"), ("mean", "AutoModel")])
def test_a_folder_of_transformers_is_loaded_by_transformers(train, dlrun, tmp_path, pooling, kind):
    import transformers

    rows = [f"{'good' if index % 2 else 'bad'},{'fine film' if index % 2 else 'dull sad film'} {index % 7}"
            for index in range(60)]  # fmt: skip
    (tmp_path / "texts.csv").write_text("label,text\n" + "\n".join(rows) + "\n")
    options = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}"
    run = train("data=text", f"data.path={tmp_path / 'texts.csv'}", "task=classification", "model=bert",
                f"model.pooling={pooling}", f"model.options={options}", "data.batch_size=8")  # fmt: skip
    folder = tmp_path / "out"
    arguments = ("--format", "transformers", "--output", str(folder), "--check", "--json")
    code, out, _ = dlrun("export", run.short_id, *arguments)
    assert code == 0 and json.loads(out)["auto_class"] == kind
    read = getattr(transformers, kind).from_pretrained(folder)
    known = predictor.load(run.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["fine film 3"], return_tensors="pt")
    assert batch["input_ids"].tolist() == known.inputs.encode([{"text": "fine film 3"}])["tokens"].tolist()
    if pooling == "cls":
        expected = known.predict_rows([{"text": "fine film 3"}]).fields["log_probabilities"]
        torch.testing.assert_close(read(**batch).logits.log_softmax(1), expected, atol=1e-5, rtol=1e-5)
        assert read.config.id2label == dict(enumerate(known.spec.labels))
