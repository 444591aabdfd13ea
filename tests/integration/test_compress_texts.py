"""Distillation through the command for what reads and says texts: one teacher, several, and every token."""

from __future__ import annotations

import json

import pytest

from dlrun import predictor
from dlrun import runs as folders

WORDS = ("data=number_words", "data.size=120", "data.batch_size=32", "train.duration=1 epoch")
CLASSES = ("task=classification", *WORDS, "data.kind=classification")
LINES = ("task=language_model", *WORDS, "data.kind=language", "data.context=32")
PAIRS = ("task=translation", *WORDS, "task.beams=1", "task.max_tokens=4")
READER = ("model=transformer_classifier", "model.width=16", "model.depth=1")
GPT = ("model=gpt", "model.width=16", "model.depth=1")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timing")]


@pytest.fixture
def taught(runs, dlrun):
    """taught(run, student, *settings) -> (what --json says, the student's predictor)."""

    def make(run_id: str, student: str, *settings: str):
        words = [f"compression.distill.{each}" for each in ("duration=4 steps", *settings)]
        code, out, told = dlrun(
            "compress", run_id, "compression=distill", f"model@compression.distill.student={student}", *words, "--json"
        )
        assert code == 0, told
        said = json.loads(out)
        return said, predictor.load(folders.find(runs, said["run_id"]).folder, "cpu")

    return make


def test_a_small_reader_is_taught_by_a_transformer(train, taught, dlrun):
    said, student = taught(
        train(*CLASSES, *READER).id, "textcnn", "student.width=8", "student.filters=4", "features=0.1"
    )
    assert student.config.model.name == "textcnn" and said["goal"]["name"] == "accuracy"
    code, out, told = dlrun("evaluate", said["run_id"], "--json")
    assert code == 0, told
    assert json.loads(out)["metrics"]["test/accuracy"] == said["metrics"]["test/accuracy"]


def test_an_ensemble_of_readers_becomes_one(train, taught, dlrun):
    recurrent = ("model=rnn", "model.width=8", "model.hidden=8")
    # One seed for the split: vocabularies are made of the training rows, and teachers need the student's.
    members = [
        train(*CLASSES, *READER, "data.split_seed=0"),
        train(*CLASSES, *recurrent, "data.split_seed=0", "seed=1"),
    ]
    code, out, told = dlrun("ensemble", *[run.id for run in members], "--json")
    assert code == 0, told
    ensemble = json.loads(out)["run_id"]
    said, student = taught(ensemble, "rnn", "student.width=8", "student.hidden=8")
    assert said["parents"] == [ensemble] and student.config.model.name == "rnn"
    assert said["before"]["parameters"] > said["after"]["parameters"] and said["ratios"]["bytes"] > 1


def test_a_language_model_is_taught_by_one_and_by_several(train, taught, dlrun):
    members = [train(*LINES, *GPT), train(*LINES, *GPT, "seed=1", "data.split_seed=0")]
    said, student = taught(members[0].id, "gpt", "student.width=8", "student.depth=1")
    assert student.model.tokens.weight.shape[1] == 8 and said["goal"]["name"] == "loss"
    assert len(student.generate(["one = "])) == 1
    code, out, told = dlrun("ensemble", *[run.id for run in members], "--json")
    assert code == 0, told
    ensemble = json.loads(out)["run_id"]
    code, _, told = dlrun("compress", ensemble, "compression=quantize_weights")
    assert code == 2 and "is an ensemble, which is no single model" in told
    said, _ = taught(ensemble, "gpt", "student.width=8", "student.depth=1")
    assert said["ratios"]["bytes"] > 1


def test_a_translator_is_taught_every_token(train, taught):
    pytest.importorskip("sacrebleu")
    teacher = train(*PAIRS, "model=transformer", "model.width=16", "model.depth=1")
    said, student = taught(teacher.id, "seq2seq_gru", "student.width=8", "student.hidden=8")
    assert student.config.model.name == "seq2seq_rnn" and "test/bleu" in said["metrics"]


def test_a_teacher_with_another_vocabulary_is_refused(train, dlrun):
    teacher, source = (
        train(*CLASSES, *READER, "data.vocabulary_size=40", "data.tokenizer=word"),
        train(*CLASSES, *READER),
    )
    code, _, told = dlrun("compress", source.id, "compression=distill", f"compression.distill.teacher={teacher.id}")
    assert code == 2 and "the teacher reads or says other things than the student" in told
