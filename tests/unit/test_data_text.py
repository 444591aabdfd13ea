"""Texts with labels, text to go on with, pairs of texts: found, cut into tokens, and refused as they should be."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.contracts import NO_TARGET, DataSpec, WithLengths
from dlrun.data import language, number_words, seq2seq, text
from dlrun.data._ragged import Ragged
from dlrun.errors import DlrunError, Exit
from dlrun.tokens import FILE, TARGET_FILE, Tokenizer, references, to_texts


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def tools(spec: DataSpec | None = None, assets=None, seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(seed=seed, assets=assets, spec=spec)


def whole(split) -> dict:
    return split.gather(torch.arange(len(split)))


def tokenizer(dataset, file: str = FILE) -> Tokenizer:
    return Tokenizer.from_json(dataset.spec.files[file], file)


def write_lines(path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def reviews(count: int = 40) -> list[dict]:
    return [
        {"sentence": f"a {'fine' if row % 2 else 'dull'} film " + "very " * (row % 5) + "long", "label": row % 2}
        for row in range(count)
    ]


# ---------------------------------------------------------------- ragged rows


def test_ragged_rows_are_padded_to_the_longest_of_the_batch_only():
    rows = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]
    ragged = Ragged.of(rows, padding=-1)
    assert ragged.padded(torch.tensor([2, 1])).tolist() == [[5, 6], [4, -1]]
    assert ragged.padded(torch.tensor([0])).tolist() == [[1, 2, 3]]
    assert ragged.take(torch.tensor([1, 0])).padded(torch.arange(2)).tolist() == [[4, -1, -1], [1, 2, 3]]
    assert ragged.shortened(1).padded(torch.tensor([0, 2])).tolist() == [[1, 2], [5, -1]]
    assert ragged.shortened(1).shifted(1, 0).padded(torch.tensor([0, 2])).tolist() == [[2, 3], [6, 0]]


# ---------------------------------------------------------------- classification


def test_texts_with_a_class_are_batches_of_tokens_lengths_and_labels(tmp_path):
    data = text.build(tools(), path=write_lines(tmp_path / "a.jsonl", reviews()), max_length=6, lower=True)
    assert data.spec.inputs == ("tokens", "lengths") and data.spec.target == "label"
    assert data.spec.sizes == {"vocabulary": tokenizer(data).size, "length": 6, "classes": 2}
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 32, "valid": 4, "test": 4}
    assert "text column: sentence (guessed)" in data.notes
    assert "text: 16 of 40 have over data.max_length=6 tokens (up to 8) and are cut" in data.notes
    batch = whole(data.split("train"))
    said = tokenizer(data).decode_batch(
        [tokens[:length] for tokens, length in zip(batch["tokens"].tolist(), batch["lengths"].tolist(), strict=True)]
    )
    rows = reviews()
    assert said == [" ".join(rows[row]["sentence"].split()[:6]) for row in batch["id"].tolist()]
    assert batch["label"].tolist() == [row % 2 for row in batch["id"].tolist()]
    assert int((batch["tokens"] != 0).sum()) == int(batch["lengths"].sum())


def test_new_rows_get_the_tokens_that_training_rows_have(tmp_path):
    data = text.build(tools(), path=write_lines(tmp_path / "a.jsonl", reviews()), framed=True)
    batch = whole(data.split("valid"))
    rows = [{"sentence": reviews()[row]["sentence"]} for row in batch["id"].tolist()]
    encoded = text.inputs(data.spec).encode(rows)
    assert torch.equal(encoded["tokens"], batch["tokens"]) and torch.equal(encoded["lengths"], batch["lengths"])
    assert encoded["tokens"][:, 0].tolist() == [tokenizer(data).beginning] * len(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentnce": "a"}, "row 0 has no 'sentence'"),
        ({"sentence": "  "}, "row 0: 'sentence' is empty"),
        ({"sentence": None}, "row 0: 'sentence' is empty"),
        ({"sentence": 1.5}, "row 0: 'sentence' is 1.5, and no text"),
        ({"sentence": "\ud83d"}, "row 0: 'sentence' is no Unicode text"),
    ],
)
def test_a_new_row_without_text_is_named(tmp_path, row, message):
    data = text.build(tools(), path=write_lines(tmp_path / "a.jsonl", reviews()))
    with pytest.raises(DlrunError) as caught:
        data.inputs.encode([row])
    assert message in caught.value.message


def test_pairs_are_parted_by_the_separator(tmp_path):
    rows = [{"premise": f"it is {row}", "claim": "no", "label": row % 2} for row in range(30)]
    data = text.build(tools(), path=write_lines(tmp_path / "a.jsonl", rows), text=["premise", "claim"])
    batch = whole(data.split("train"))
    assert (batch["tokens"] == tokenizer(data).separator).sum(1).tolist() == [1] * len(batch["id"])
    encoded = data.inputs.encode([{"premise": f"it is {batch['id'][0]}", "claim": "no"}])
    assert encoded["tokens"][0].tolist() == batch["tokens"][0, : batch["lengths"][0]].tolist()


def test_several_labels_are_read_from_lists_or_from_columns_of_zeros_and_ones(tmp_path):
    rows = [{"text": f"row {row}", "topics": ["b"] * (row % 2) + ["a"] * (row % 3 == 0)} for row in range(30)]
    flags = [{"text": row["text"], "a": int("a" in row["topics"]), "b": int("b" in row["topics"])} for row in rows]
    lists = text.build(tools(), path=write_lines(tmp_path / "lists.jsonl", rows), labels="topics")
    columns = text.build(tools(), path=write_lines(tmp_path / "flags.jsonl", flags), labels=["a", "b"], text="text")
    for data in (lists, columns):
        assert data.spec.target == "labels" and data.spec.labels == ("a", "b") and data.spec.sizes["labels"] == 2
        batch = whole(data.split("train"))
        assert batch["labels"].dtype == torch.float32
        assert batch["labels"].tolist() == [[float(r % 3 == 0), float(r % 2)] for r in batch["id"].tolist()]
    with pytest.raises(DlrunError, match=r"lists.jsonl has no column 'topic'") as caught:
        text.build(tools(), path=str(tmp_path / "lists.jsonl"), labels="topic")
    assert caught.value.hint == "did you mean topics?"


def test_a_source_runs_spec_is_used_and_never_made_anew(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", reviews())
    data = text.build(tools(), path=path)
    other = write_lines(
        tmp_path / "b.jsonl", [{"sentence": f"a film unseen {row}", "label": row % 2} for row in range(20)]
    )
    again = text.build(tools(data.spec), path=other)
    assert again.spec is data.spec
    seen = {tokenizer(data).unknown, *tokenizer(data).encode("a film")}
    assert set(whole(again.split("train"))["tokens"].flatten().tolist()) == seen


def test_the_vocabulary_of_a_run_to_start_from_is_kept_and_said(tmp_path):
    first = text.build(tools(), path=write_lines(tmp_path / "a.jsonl", reviews()), tokenizer="char")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / FILE).write_bytes(first.spec.files[FILE])
    next_one = text.build(tools(assets=tmp_path / "assets"), path=str(tmp_path / "a.jsonl"))
    assert next_one.spec.files == first.spec.files
    assert any(
        note.endswith("that of the run this one stands on; data.tokenizer=word is not used") for note in next_one.notes
    )


def test_texts_that_a_runs_vocabulary_does_not_know_are_said_and_refused_where_nearly_all_is_unknown(tmp_path):
    data = text.build(tools(), path=write_lines(tmp_path / "a.jsonl", reviews()), tokenizer="char", framed=True)
    assert not any("unknown" in note for note in data.notes)
    rows = [{"sentence": "fine finé", "label": row % 2} for row in range(20)]
    again = text.build(tools(data.spec), path=write_lines(tmp_path / "b.jsonl", rows))
    said = "are unknown to this vocabulary (char, that of the run this one stands on)"
    assert again.notes[-1] == f"tokens: 11 % of train {said}"
    rows = [{"sentence": "退屈な映画", "label": row % 2} for row in range(20)]
    with pytest.raises(DlrunError) as caught:
        text.build(tools(data.spec), path=write_lines(tmp_path / "c.jsonl", rows))
    assert caught.value.message == f"train: 100 % of the tokens {said}" and caught.value.code == Exit.DATA
    assert "train a run that makes a vocabulary of these" in caught.value.hint


def test_unknown_tokens_are_counted_in_streams_and_in_pairs(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    (tmp_path / "b.txt").write_text("abcdefghiX" * 10)
    data = language.build(tools(), path=str(tmp_path / "a.txt"), tokenizer="char", context=8)
    again = language.build(tools(data.spec), path=str(tmp_path / "b.txt"), valid_fraction=0.0)
    assert again.notes[-1].startswith("tokens: 10 % of train are unknown to this vocabulary (char")
    (tmp_path / "b.txt").write_text("映画" * 50)
    with pytest.raises(DlrunError, match=r"train: 100 % of the tokens are unknown"):
        language.build(tools(data.spec), path=str(tmp_path / "b.txt"))
    settings = {"source": "de", "target": "en", "tokenizer": "char", "shared_vocabulary": False}
    data = seq2seq.build(tools(), path=write_lines(tmp_path / "a.jsonl", pairs()), **settings)
    rows = [{"de": "das ist", "en": "theX iX"} for _ in range(20)]
    again = seq2seq.build(tools(data.spec), path=write_lines(tmp_path / "b.jsonl", rows), **settings)
    [note] = [note for note in again.notes if "unknown" in note]
    assert note.startswith("target tokens: 43 % of train")


def test_new_rows_say_how_much_of_them_was_cut_and_is_unknown(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", reviews())
    data = text.build(tools(), path=path, tokenizer="char", max_length=12)
    assert data.inputs.notes() == []
    data.inputs.encode([{"sentence": "a fine film indeed"}, {"sentence": "a film"}])
    data.inputs.encode([{"sentence": "a filé"}])
    assert data.inputs.notes() == [
        "1 of 3 texts have over data.max_length=12 tokens: the beginning is read",
        "1 of 30 tokens are unknown to the run's vocabulary (char), and say nothing",
    ]
    pairs_of = seq2seq.build(
        tools(), path=write_lines(tmp_path / "b.jsonl", pairs()), source="de", target="en", max_length=3
    )
    pairs_of.inputs.encode([{"de": "das ist sehr sehr 3"}])
    assert pairs_of.inputs.notes() == ["1 of 1 texts have over data.max_length=3 tokens: the beginning is read"]


def test_empty_texts_are_refused_by_their_row_or_left_out(tmp_path):
    rows = reviews()
    rows[7]["sentence"] = "   "
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DlrunError, match=r"a.jsonl, row 7: there is no text in column 'sentence'") as caught:
        text.build(tools(), path=path)
    assert caught.value.code == Exit.DATA
    data = text.build(tools(), path=path, on_bad="skip")
    ids = sorted(row for split in data.splits.values() for row in whole(split)["id"].tolist())
    assert ids == [row for row in range(40) if row != 7]
    assert any("row 7" in note for note in data.notes)


def test_bytes_that_are_no_utf8_are_named_by_their_row(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"sentence,label\nfine,1\nd\xfcll,0\n")
    with pytest.raises(DlrunError, match=r"a.csv, line 3: is not UTF-8 \(byte 0xfc\)") as caught:
        text.build(tools(), path=str(tmp_path / "a.csv"))
    assert caught.value.code == Exit.DATA
    (tmp_path / "a.jsonl").write_bytes(b'{"sentence":"fine","label":1}\n{"sentence":"d\xfcll","label":0}\n')
    with pytest.raises(DlrunError, match=r"a.jsonl, row 1: column 'sentence' is not UTF-8"):
        text.build(tools(), path=str(tmp_path / "a.jsonl"))


def test_texts_that_are_too_long_can_be_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", reviews())
    with pytest.raises(
        DlrunError, match=r"a.jsonl, row 3: text of 7 tokens is longer than data.max_length=6"
    ) as caught:
        text.build(tools(), path=path, max_length=6, on_long="raise")
    assert caught.value.hint == "cut such: data.on_long=cut, or allow for the longest: data.max_length=8"
    data = text.build(tools(), path=path, max_length=8, on_long="raise")
    with pytest.raises(DlrunError, match="row 0: a text of 9 tokens is longer than"):
        data.inputs.encode([{"sentence": "film " * 9}])


def test_a_missing_label_or_column_is_named(tmp_path):
    rows = reviews()
    rows[3]["label"] = None
    with pytest.raises(DlrunError, match=r"1 row has no label in column 'label' \(the first: row 3\)"):
        text.build(tools(), path=write_lines(tmp_path / "a.jsonl", rows))
    with pytest.raises(DlrunError, match=r"b.jsonl has no column 'sentense'") as caught:
        text.build(tools(), path=write_lines(tmp_path / "b.jsonl", reviews()), text="sentense")
    assert caught.value.hint == "did you mean sentence?"


def test_a_row_without_a_label_may_be_skipped(tmp_path):
    rows = reviews()
    rows[3]["label"] = None
    dataset = text.build(tools(), path=write_lines(tmp_path / "a.jsonl", rows), on_bad="skip", test_fraction=0)
    ids = [row for name in ("train", "valid") for row in whole(dataset.split(name))["id"].tolist()]
    assert sorted(ids) == [row for row in range(len(rows)) if row != 3]
    assert "a.jsonl, row 3: no label in column 'label'" in dataset.notes[-1]


def test_a_pretrained_vocabulary_and_one_to_be_trained_exclude_each_other(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", reviews())
    with pytest.raises(DlrunError, match=r"data.tokenizer=pretrained needs to know which"):
        text.build(tools(), path=path, tokenizer="pretrained")
    with pytest.raises(DlrunError, match=r"data.tokenizer=word trains a vocabulary of its own"):
        text.build(tools(), path=path, pretrained="somewhere")


# ---------------------------------------------------------------- language


def test_windows_of_a_text_say_every_token_but_the_first_once(tmp_path):
    story = "".join(chr(97 + place % 7) for place in range(100))
    (tmp_path / "story.txt").write_text(story)
    data = language.build(tools(), path=str(tmp_path / "story.txt"), tokenizer="char", context=8, valid_fraction=0.3)
    made = tokenizer(data)
    assert data.spec.inputs == ("tokens",) and data.spec.target == "targets"
    assert data.spec.sizes == {"vocabulary": made.size, "context": 8}
    valid = whole(data.split("valid"))
    assert [len(data.split("train")), len(data.split("valid"))] == [8, 4]
    assert made.decode(valid["targets"][valid["targets"] != NO_TARGET].tolist()) == story[71:]
    assert valid["targets"][3].tolist().count(NO_TARGET) == 3 and valid["lengths"].tolist() == [8, 8, 8, 5]
    assert valid["bytes"].tolist() == [8, 8, 8, 5]
    train = whole(data.split("train"))
    assert torch.equal(train["tokens"][:, 1:], train["targets"][:, :-1])
    assert not isinstance(data.split("train"), WithLengths)


def test_a_stride_of_one_begins_a_window_everywhere(tmp_path):
    (tmp_path / "story.txt").write_text("abcdefghij" * 10)
    data = language.build(
        tools(), path=str(tmp_path / "story.txt"), tokenizer="char", context=8, stride=1, valid_fraction=0.0
    )
    split = data.split("train")
    assert len(split) == 100 - 8
    assert tokenizer(data).decode(split.gather(torch.tensor([3]))["targets"][0].tolist()) == "efghijab"


def test_documents_are_parted_by_the_end_token_which_stands_for_no_bytes(tmp_path):
    for name, said in (("train.txt", "näh"), ("train_2.txt", "ja"), ("valid.txt", "ah")):
        (tmp_path / name).write_text(said)
    data = language.build(tools(), path=str(tmp_path), tokenizer="char", context=16)
    made, train = tokenizer(data), whole(data.split("train"))
    assert train["tokens"][0].tolist() == [*made.encode("näh"), made.end, *made.encode("ja")]
    assert train["targets"][0].tolist()[-1] == made.end
    assert train["bytes"].tolist() == [len("äh".encode()) + len("ja")]
    assert "splits: train is train.txt and train_2.txt, valid is valid.txt (guessed)" in data.notes


def test_a_text_file_that_is_no_utf8_is_named_by_its_line(tmp_path):
    (tmp_path / "story.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(DlrunError, match=r"story.txt, line 3: is not UTF-8 \(byte 0xe9\)"):
        language.build(tools(), path=str(tmp_path / "story.txt"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DlrunError, match=r"empty.txt: there is no text in it"):
        language.build(tools(), path=str(tmp_path / "empty.txt"))


def test_a_prompt_is_its_end_where_it_is_longer_than_the_context(tmp_path):
    (tmp_path / "story.txt").write_text("abcdefghij" * 10)
    data = language.build(tools(), path=str(tmp_path / "story.txt"), tokenizer="char", context=4)
    encoded = data.inputs.encode([{"text": "abcdefg"}, {"prompt": "ab"}])
    assert encoded["lengths"].tolist() == [4, 2]
    assert tokenizer(data).decode(encoded["tokens"][0].tolist()) == "defg"


# ---------------------------------------------------------------- pairs of texts


def pairs(count: int = 40) -> list[dict]:
    return [{"de": f"das ist {'sehr ' * (row % 4)}{row}", "en": f"that is {row}"} for row in range(count)]


def test_a_decoder_reads_from_the_beginning_and_says_to_the_end(tmp_path):
    data = seq2seq.build(
        tools(), path=write_lines(tmp_path / "a.jsonl", pairs()), source="de", target="en", tokenizer="word"
    )
    made = tokenizer(data)
    assert data.spec.inputs == ("source", "source_lengths", "tokens") and data.spec.target == "targets"
    assert data.spec.files[FILE] == data.spec.files[TARGET_FILE] and data.spec.assets["shared_vocabulary"]
    assert data.spec.sizes["vocabulary"] == data.spec.sizes["target_vocabulary"] == made.size
    batch = whole(data.split("test"))
    assert to_texts(batch["reference"]) == [pairs()[row]["en"] for row in batch["id"].tolist()]
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        said = [token for token in targets if token != NO_TARGET]
        assert tokens[0] == made.beginning and said[-1] == made.end
        assert tokens[1 : len(said)] == said[:-1]
    encoded = data.inputs.encode([{"de": "das ist 3"}])
    assert encoded["source_lengths"].tolist() == [3] and encoded["tokens"].tolist() == [[made.beginning]]


def test_source_and_target_may_have_a_vocabulary_each(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", pairs())
    data = seq2seq.build(tools(), path=path, source="de", target="en", tokenizer="word", shared_vocabulary=False)
    source, target = tokenizer(data), tokenizer(data, TARGET_FILE)
    assert source.unknown in source.encode("that") and target.unknown in target.encode("das")
    assert data.spec.sizes["target_vocabulary"] == target.size != source.size


def test_two_files_are_read_line_for_line(tmp_path):
    for split in ("train", "val"):
        for language_of in ("de", "en"):
            lines = [row[language_of] for row in pairs(12)]
            (tmp_path / f"{split}.{language_of}").write_text("\n".join(lines) + "\n")
    data = seq2seq.build(tools(), path=str(tmp_path), source="de", target="en", tokenizer="word", test_fraction=0.0)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "valid": 12}
    with pytest.raises(DlrunError, match=r"data.source: no file of .* ends in .dee") as caught:
        seq2seq.build(tools(), path=str(tmp_path), source="dee", target="en")
    assert caught.value.hint == "did you mean de?"
    (tmp_path / "train.en").write_text("one line\n")
    with pytest.raises(DlrunError, match=r"train.de has 12 lines and train.en has 1"):
        seq2seq.build(tools(), path=str(tmp_path), source="de", target="en")


def test_an_unknown_language_column_is_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", pairs())
    with pytest.raises(DlrunError, match=r"data.source: a.jsonl has no column 'fr'") as caught:
        seq2seq.build(tools(), path=path, source="fr", target="en")
    assert caught.value.hint == "known: de, en"
    with pytest.raises(DlrunError, match="which column is the source"):
        seq2seq.build(tools(), path=path)


def test_several_references_travel_as_one_text(tmp_path):
    rows = [{"document": f"text {row}", "summary": "s", "all": ["s", f"t {row}"]} for row in range(20)]
    data = seq2seq.build(tools(), path=write_lines(tmp_path / "a.jsonl", rows), references="all")
    batch = whole(data.split("test"))
    said = [references(one) for one in to_texts(batch["reference"])]
    assert said == [["s", f"t {row}"] for row in batch["id"].tolist()]


def test_languages_inside_one_column_are_found(tmp_path):
    rows = [{"translation": row} for row in pairs()]
    data = seq2seq.build(tools(), path=write_lines(tmp_path / "a.jsonl", rows), source="de", target="en")
    assert len(data.split("train")) == 32


# ---------------------------------------------------------------- made, not read


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (40, "forty"), (115, "one hundred fifteen"), (90_021, "ninety thousand twenty-one"),
     (999_999, "nine hundred ninety-nine thousand nine hundred ninety-nine")],
)  # fmt: skip
def test_numbers_are_spelled_out(number, words):
    assert number_words.spelled(number) == words


@pytest.mark.parametrize("kind", ["translation", "language", "classification", "chat"])
def test_number_words_serve_every_task_and_depend_on_the_seed_alone(kind):
    one, same, other = (number_words.build(tools(seed=seed), kind=kind, size=200) for seed in (3, 3, 4))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    left, right = whole(one.split("train")), whole(same.split("train"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert set(one.splits) == {"train", "valid", "test"}
    assert number_words.inputs(DataSpec.from_json(one.spec.to_json(), one.spec.files)).encode(
        [{"text": "two", "prompt": "2"}]
    )


def test_even_numbers_are_called_even():
    data = number_words.build(tools(), kind="classification", reverse=True, size=200)
    batch = whole(data.split("train"))
    said = tokenizer(data).decode_batch(
        [row[:length] for row, length in zip(batch["tokens"].tolist(), batch["lengths"].tolist(), strict=True)]
    )
    assert [data.spec.labels[label] for label in batch["label"].tolist()] == [
        "odd" if int(digits) % 2 else "even" for digits in said
    ]


def test_rows_of_one_class_are_refused_by_their_column(tmp_path):
    rows = [{"text": f"row {row}", "mood": "good"} for row in range(20)]
    with pytest.raises(DlrunError, match="every row has the label 'good' in column 'mood'"):
        text.build(tools(), path=write_lines(tmp_path / "a.jsonl", rows), target="mood", text="text")
    with pytest.raises(DlrunError, match=r"data.target and data.labels are both set"):
        text.build(tools(), path=str(tmp_path / "a.jsonl"), target="mood", labels="mood")
