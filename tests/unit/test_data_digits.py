"""scikit-learn's digits: equal to what scikit-learn says, split as asked for."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.contracts import DataSpec
from dlrun.data import digits
from dlrun.errors import DlrunError


def tools(seed: int = 0, spec: DataSpec | None = None) -> SimpleNamespace:
    return SimpleNamespace(seed=seed, assets=None, spec=spec)


def everything(dataset):
    return {name: split.gather(torch.arange(len(split))) for name, split in dataset.splits.items()}


def test_pixels_and_labels_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    reference = load_digits()
    batches = everything(digits.build(tools()))
    ids = torch.cat([batch["id"] for batch in batches.values()])
    images = torch.cat([batch["image"] for batch in batches.values()])[ids.argsort()]
    labels = torch.cat([batch["label"] for batch in batches.values()])[ids.argsort()]
    assert torch.equal(ids.sort().values, torch.arange(1797))
    assert np.array_equal(labels.numpy(), reference.target)
    assert images.dtype == torch.uint8
    assert np.abs(images[:, 0].numpy() - reference.images * 255 / 16).max() <= 0.5


def test_splits_have_the_asked_sizes_and_say_so():
    dataset = digits.build(tools())
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 1257, "valid": 270, "test": 270}
    assert "test: 270 rows held out of the 1,797 of train (stratified by label, seed 0)" in dataset.notes


def test_the_spec_says_what_a_model_must_know():
    spec = digits.build(tools()).spec
    assert spec.inputs == ("image",)
    assert spec.target == "label"
    assert spec.sizes == {"classes": 10, "channels": 1, "height": 8, "width": 8}
    assert spec.shapes == {"image": (1, 8, 8)}
    assert spec.labels == tuple("0123456789")
    assert DataSpec.from_json(spec.to_json()) == spec


def test_prepared_training_images_have_zero_mean_and_unit_deviation():
    dataset = digits.build(tools())
    image = dataset.inputs.prepare(everything(dataset)["train"])["image"]
    assert image.dtype == torch.float32
    assert abs(image.mean()) < 1e-5
    assert abs(image.std() - 1) < 1e-4


def test_the_run_seed_chooses_the_rows_unless_a_split_seed_is_set():
    first, other, fixed, also = (
        digits.build(tools(seed), split_seed=split_seed) for seed, split_seed in ((0, None), (1, None), (0, 7), (1, 7))
    )
    assert first.fingerprint != other.fingerprint
    assert fixed.fingerprint == also.fingerprint
    assert torch.equal(everything(fixed)["test"]["id"], everything(also)["test"]["id"])


def test_images_can_be_scaled_and_the_training_rows_reduced():
    dataset = digits.build(tools(), image_size=28, train_size=1000)
    batch = everything(dataset)["train"]
    assert batch["image"].shape == (1000, 1, 28, 28)
    assert torch.bincount(batch["label"]).min() >= 95
    with pytest.raises(DlrunError, match=r"data.image_size: 0"):
        digits.build(tools(), image_size=0)


def test_a_derived_run_keeps_the_statistics_of_its_source():
    spec = digits.build(tools(seed=0)).spec
    assert digits.build(tools(seed=5), split_seed=5).spec != spec
    assert digits.build(tools(seed=5, spec=spec), split_seed=5).spec == spec


def test_building_the_digits_imports_no_library_that_is_slow_to_start():
    code = """
import sys
from types import SimpleNamespace
from dlrun.data import digits
digits.build(SimpleNamespace(seed=0, assets=None))
print(sorted({"sklearn", "scipy", "PIL", "datasets", "pandas", "pyarrow"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
