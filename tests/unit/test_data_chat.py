"""Conversations: laid out in tokens, learned only where the assistant speaks, cut so that something is left."""

import json
from types import SimpleNamespace

import pytest
import torch

from dlrun.contracts import NO_TARGET
from dlrun.data import chat
from dlrun.data._conversation import Turn, turns_of
from dlrun.errors import DlrunError
from dlrun.tokens import FILE, Tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build(path, rows: list[dict], **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"tokenizer": "char", "context": 64, "valid_fraction": 0.0, "test_fraction": 0.0} | settings
    return chat.build(SimpleNamespace(seed=0, assets=None), path=str(path), **settings)


def whole(split) -> dict:
    return split.gather(torch.arange(len(split)))


def tokenizer(data) -> Tokenizer:
    return Tokenizer.from_json(data.spec.files[FILE])


def said(data, row: list[int]) -> str:
    """Tokens as text, the special ones spelled out."""
    return tokenizer(data)._backend.decode(row, skip_special_tokens=False)


INSTRUCTIONS = [
    {"instruction": "add", "input": "1 2", "output": "3"},
    {"instruction": "hi", "input": "", "output": "yo"},
]
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bb"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "dd"}]  # fmt: skip


def test_an_instruction_is_a_question_with_its_answer_and_only_the_answer_is_learned(tmp_path):
    data = build(tmp_path / "a.jsonl", INSTRUCTIONS)
    batch = whole(data.split("train"))
    assert data.spec.inputs == ("tokens",) and data.spec.sizes == {"vocabulary": tokenizer(data).size, "context": 64}
    first = batch["tokens"][0, : batch["lengths"][0]].tolist()
    assert said(data, first) == "<s><|user|>add\n\n1 2</s><|assistant|>3"
    targets = batch["targets"][0]
    assert said(data, targets[targets != NO_TARGET].tolist()) == "3</s>"
    assert batch["bytes"].tolist() == [1, 2]
    places = (targets != NO_TARGET).nonzero()[:-1, 0]  # but for the end token, which is never read
    assert torch.equal(targets[places], batch["tokens"][0, places + 1])


def test_every_answer_of_several_turns_is_learned(tmp_path):
    data = build(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": TALK[:2]}])
    batch = whole(data.split("train"))
    assert said(data, batch["tokens"][0].tolist()) == "<s><|user|>a</s><|assistant|>bb</s><|user|>c</s><|assistant|>dd"
    targets = batch["targets"][0]
    assert said(data, targets[targets != NO_TARGET].tolist()) == "bb</s>dd</s>"


def test_conversations_may_say_from_and_value_and_a_system_stands_first(tmp_path):
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    data = build(tmp_path / "a.jsonl", rows, system="be kind")
    assert said(data, whole(data.split("train"))["tokens"][0].tolist()) == (
        "<s><|system|>be kind</s><|user|>a</s><|assistant|>b"
    )


def test_a_long_conversation_loses_its_oldest_turns_then_the_end_of_its_answer(tmp_path):
    data = build(tmp_path / "a.jsonl", [{"messages": TALK}], context=8)
    assert said(data, whole(data.split("train"))["tokens"][0].tolist()) == "<s><|user|>c</s><|assistant|>dd"
    data = build(tmp_path / "b.jsonl", [{"messages": TALK}], context=6)
    targets = whole(data.split("train"))["targets"][0]
    assert said(data, targets[targets != NO_TARGET].tolist()) == "dd"
    assert "conversation: 1 of 1 have over data.context=6 tokens (up to 14) and are cut" in data.notes
    with pytest.raises(DlrunError, match=r"a.jsonl, row 0: conversation of 14 tokens is longer than data.context=8"):
        build(tmp_path / "a.jsonl", [{"messages": TALK}], context=8, on_long="raise")


def test_a_question_that_leaves_no_room_for_an_answer_is_a_bad_row(tmp_path):
    rows = [{"messages": TALK[:2]}, {"messages": [{"role": "user", "content": "x" * 90}, TALK[1]]}]
    with pytest.raises(DlrunError, match=r"row 1: what is asked takes all of data.context=64 tokens"):
        build(tmp_path / "a.jsonl", rows)
    data = build(tmp_path / "a.jsonl", rows, on_bad="skip")
    assert whole(data.split("train"))["id"].tolist() == [0]


def test_a_prompt_ends_where_the_assistant_is_to_speak(tmp_path):
    data = build(tmp_path / "a.jsonl", [*INSTRUCTIONS, {"instruction": "abcdx", "input": None, "output": "y"}])
    encoded = data.inputs.encode(
        [{"prompt": "hi"}, {"instruction": "add", "input": "1 2"}, {"messages": [{"role": "user", "content": "hi"}]}]
    )
    rows = [row[:n] for row, n in zip(encoded["tokens"].tolist(), encoded["lengths"].tolist(), strict=True)]
    assert said(data, rows[0]) == "<s><|user|>hi</s><|assistant|>" == said(data, rows[2])
    assert said(data, rows[1]) == "<s><|user|>add\n\n1 2</s><|assistant|>"
    trained = whole(data.split("train"))["tokens"][1].tolist()
    assert trained[: len(rows[0])] == rows[0]


def test_a_prompt_longer_than_the_context_keeps_its_end(tmp_path):
    data = build(tmp_path / "a.jsonl", [{"messages": TALK}], context=8)
    turns = [*TALK, {"role": "user", "content": "a"}]
    encoded = data.inputs.encode([{"messages": turns}, {"prompt": "abcd" * 9}])
    assert encoded["tokens"].shape[1] <= 8
    assert said(data, encoded["tokens"][0, : encoded["lengths"][0]].tolist()) == "<s><|user|>a</s><|assistant|>"
    assert said(data, encoded["tokens"][1].tolist()).endswith("abcd</s><|assistant|>")
    assert data.inputs.notes() == ["2 of 2 texts have over data.context=8 tokens: the end is read"]


def test_unknown_words_of_a_conversation_are_counted_without_its_markers(tmp_path):
    data = build(tmp_path / "a.jsonl", [{"messages": TALK}])
    rows = [{"messages": [{"role": "user", "content": "aX"}, {"role": "assistant", "content": "bb"}]}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tools = SimpleNamespace(seed=0, assets=None, spec=data.spec)
    again = chat.build(tools, path=str(tmp_path / "b.jsonl"), valid_fraction=0.0, test_fraction=0.0)
    assert again.notes[-1].startswith("tokens: 25 % of train are unknown to this vocabulary (char")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "there are no messages"),
        ([{"role": "usr", "content": "a"}], "message 0 has the unknown role 'usr' (did you mean user?)"),
        ([{"role": "user", "content": " "}], "message 0 says nothing"),
        ([{"who": "me"}], "message 0 has neither role and content nor from and value"),
    ],
)
def test_what_is_no_conversation_is_said_why(messages, reason):
    with pytest.raises(ValueError) as caught:
        turns_of(messages)
    assert str(caught.value) == reason


def test_roles_of_other_formats_are_understood():
    assert turns_of([{"from": "function_call", "value": "f()"}, {"from": "observation", "value": "1"}]) == [
        Turn("assistant", "f()"),
        Turn("user", "1"),
    ]


def test_a_row_without_an_answer_is_named(tmp_path):
    with pytest.raises(DlrunError, match=r"a.jsonl, row 1: the assistant says nothing"):
        build(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": TALK[:1]}])
    preferred = {"messages": TALK[:1], "chosen": TALK, "rejected": TALK}
    with pytest.raises(DlrunError, match=r"row 0: the assistant says nothing in 'messages'; data.messages=chosen is"):
        build(tmp_path / "c.jsonl", [preferred])
    assert len(build(tmp_path / "c.jsonl", [preferred], messages="chosen").split("train")) == 1
    with pytest.raises(DlrunError, match=r"b.jsonl, row 1: there is no text in column 'output'"):
        build(tmp_path / "b.jsonl", [INSTRUCTIONS[0], {**INSTRUCTIONS[1], "output": ""}])


def test_a_new_row_that_ends_with_the_assistant_is_refused(tmp_path):
    data = build(tmp_path / "a.jsonl", INSTRUCTIONS)
    with pytest.raises(DlrunError, match="row 0: the last message is the assistant's own"):
        data.inputs.encode([{"messages": TALK}])
    with pytest.raises(DlrunError, match="row 0 has no 'prompt'"):
        data.inputs.encode([{"prmpt": "a"}])
