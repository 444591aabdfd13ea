"""Real tables and interactions: what the README beside them says is what is read, and a little training learns."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlrun.data import ratings, table
from dlrun.models import tabular_linear

FOLDER = os.environ.get("DLRUN_TEST_DATA")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER, reason="DLRUN_TEST_DATA does not name the folder of the real data sets"),
]
TOOLS = SimpleNamespace(seed=0, assets=None, spec=None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def whole(split):
    return split.gather(torch.arange(len(split)))


def test_adult_is_read_with_its_official_split_and_missing_words():
    path = str(Path(FOLDER or "") / "adult")
    data = table.build(TOOLS, path=path, target="income", missing=["?"], scaling="quantile", valid_fraction=0)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 32_561, "test": 16_281}
    assert data.spec.sizes == {"numbers": 6, "categories": 8, "classes": 2}
    assert data.spec.labels == ("<=50K", ">50K")
    train, test = whole(data.split("train")), whole(data.split("test"))
    assert torch.bincount(train["label"]).tolist() == [24_720, 7_841]
    assert torch.bincount(test["label"]).tolist() == [12_435, 3_846]
    assert int((train["categories"] == 1).any(1).sum()) == 2_399  # rows with "?"
    model = tabular_linear.build(data.spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for rows in torch.randperm(32_561, generator=torch.Generator().manual_seed(0)).split(512):
        optimizer.zero_grad()
        logits = model(train["numbers"][rows], train["categories"][rows])
        torch.nn.functional.cross_entropy(logits, train["label"][rows]).backward()
        optimizer.step()
    said = model(test["numbers"], test["categories"]).argmax(1)
    assert (said == test["label"]).float().mean() > 0.84  # 1R, the best single rule: 0.8046


def test_compas_is_typed_and_its_dates_are_no_categories():
    path = str(Path(FOLDER or "") / "compas" / "compas-scores-two-years.csv.gz")
    data = table.build(TOOLS, path=path, target="two_year_recid")
    assert sum(len(split) for split in data.splits.values()) == 7_214
    assert {"race", "sex", "age_cat"} <= set(data.spec.assets["category_columns"])


def test_amazon_games_has_the_numbers_of_the_paper():
    path = str(Path(FOLDER or "") / "amazon_video_games" / "Video.txt.gz")
    data = ratings.build(TOOLS, path=path, history=50)
    assert (data.spec.sizes["users"], data.spec.sizes["items"]) == (31_013, 23_715)
    assert data.spec.sizes["candidates"] == 101
    assert len(data.split("test")) == len(data.split("valid")) == 30_901
    batch = data.split("test").gather(torch.arange(500))
    assert not (batch["candidates"][:, 1:, None] == batch["seen"][:, None]).any()
    assert batch["history"].shape[1] <= 50
