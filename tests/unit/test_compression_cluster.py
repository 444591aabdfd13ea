"""Weight sharing: k-means against scikit-learn's, packing, the file's size, and that it is read back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save
from tests.unit.fake_compression import (
    IMAGES,
    TEXTS,
    WINDOWS,
    Tools,
    images_net,
    read_back,
    said,
    texts_net,
    windows_net,
)  # fmt: skip
from torch import nn

from dlrun.compression import _codebooks, cluster, prune_magnitude
from dlrun.errors import DlrunError
from dlrun.training import checkpoint


def test_few_distinct_weights_are_kept_exactly():
    weight = torch.tensor([[0.5, -1.0], [0.5, 2.0]])
    values, indices = _codebooks.clustered(weight, 4, 10)
    assert values.tolist() == [-1.0, 0.5, 2.0]
    assert torch.equal(values[indices.int()], weight)


def test_k_means_is_as_good_as_scikit_learns():
    from sklearn.cluster import KMeans

    weight = torch.randn(500, generator=torch.Generator().manual_seed(0))
    values, indices = _codebooks.clustered(weight, 8, 300)
    ours = float((values[indices.int()] - weight).double().square().sum())
    theirs = KMeans(8, n_init=10, random_state=0).fit(weight[:, None].double().numpy()).inertia_
    assert ours <= 1.05 * theirs


def test_every_weight_becomes_the_nearest_value():
    weight = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    values, indices = _codebooks.clustered(weight, 5, 50)
    assert torch.equal(indices.long(), (weight[..., None] - values).abs().argmin(-1))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 16, 17, 256])
def test_packed_indices_are_unpacked_unchanged(size):
    indices = torch.randint(0, size, (13,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    width = _codebooks.bits(size)
    assert size <= 2**width <= max(4, size**2)
    bytes_ = _codebooks.packed(indices, width)
    assert len(bytes_) == -(-13 * width // 8)
    assert torch.equal(_codebooks.unpacked(bytes_, width, 13), indices.int())


def test_pruned_weights_stay_zero_through_clustering_and_training():
    tools = Tools(IMAGES)
    pruned, _ = prune_magnitude.build(IMAGES, sparsity=0.5, finetune=None).compress(images_net(), tools)
    zero = pruned.get_parameter("stages.1.0.weight") == 0
    shared, _ = cluster.build(IMAGES, clusters=8, smallest=32, finetune="2 epochs").compress(pruned, tools)
    assert torch.equal(shared.stages[1][0].weight == 0, zero)


def test_the_file_is_really_smaller():
    model = images_net("resnet")
    before = len(save(checkpoint.model_tensors(model)))
    shared, plan = cluster.build(IMAGES, clusters=16).compress(model, Tools(IMAGES))
    after = len(save({name: tensor.contiguous() for name, tensor in checkpoint.model_tensors(shared).items()}))
    assert before > 3 * after  # names and norms are much of so small a file
    assert plan["report"]["bytes"][1] < plan["report"]["bytes"][0] / 4


@pytest.mark.parametrize(
    ("make", "spec"),
    [(images_net, IMAGES), (lambda: texts_net("rnn"), TEXTS), (lambda: texts_net("transformers"), TEXTS),
     (windows_net, WINDOWS)],
    ids=["cnn", "rnn", "bert", "gpt"],
)  # fmt: skip
@pytest.mark.parametrize("finetune", [None, "1 epoch"])
def test_a_clustered_model_is_read_back_bit_for_bit(make, spec, finetune):
    method = cluster.build(spec, clusters=8, smallest=64, finetune=finetune)
    shared, plan = method.compress(make(), Tools(spec))
    assert plan["codebooks"]
    again = read_back(method, shared, plan, make())
    assert torch.equal(said(again, spec), said(shared, spec))
    assert not torch.equal(said(shared, spec), said(make(), spec))


def test_enough_values_are_the_identity():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.randint(0, 16, (4, 64)).float())
    before = said(model, IMAGES)
    shared, _ = cluster.build(IMAGES, clusters=16).compress(model, Tools(IMAGES))
    assert torch.equal(said(shared, IMAGES), before)


def test_training_moves_the_values_and_not_the_sharing():
    method = cluster.build(IMAGES, clusters=4, smallest=32, finetune="2 epochs")
    still, _ = cluster.build(IMAGES, clusters=4, smallest=32).compress(images_net(), Tools(IMAGES))
    moved, _ = method.compress(images_net(), Tools(IMAGES))
    first, second = still.stages[1][0], moved.stages[1][0]
    assert torch.equal(first.parametrizations.weight.original0, second.parametrizations.weight.original0)
    assert not torch.equal(first.weight, second.weight)
    assert len(second.weight.unique()) == 4


def test_a_clustered_recurrent_model_can_be_copied_after_training():
    shared, _ = cluster.build(TEXTS, clusters=4, finetune="1 epoch").compress(texts_net("rnn"), Tools(TEXTS))
    Tools(TEXTS).task.loss(shared.train(), Tools(TEXTS).rows)
    assert torch.equal(said(copy.deepcopy(shared), TEXTS), said(shared, TEXTS))


def test_values_loaded_later_are_written_out_anew():
    shared, _ = cluster.build(IMAGES, clusters=4, smallest=32).compress(images_net(), Tools(IMAGES))
    first = said(shared, IMAGES)
    with torch.no_grad():
        _codebooks.of(shared, "head.weight").values.mul_(2.0)
    assert not torch.equal(said(shared, IMAGES), first)


def test_a_clustered_model_is_exported_with_its_codebooks():
    shared, _ = cluster.build(IMAGES, clusters=4, smallest=32).compress(images_net(), Tools(IMAGES))
    x = Tools(IMAGES).rows["image"]
    said(shared, IMAGES)
    with torch.no_grad():
        exported = torch.export.export(shared, (x,)).module()(x)
    torch.testing.assert_close(exported, said(shared, IMAGES))


def test_layers_too_small_for_it_are_refused_with_the_setting_to_change():
    with pytest.raises(DlrunError) as error:
        cluster.build(IMAGES, smallest=10_000).compress(images_net(), Tools(IMAGES))
    assert error.value.message == "cluster: Cnn has no layer of 10000 weights or more to cluster"
    assert error.value.hint == "compression.cluster.smallest=64"


def test_more_than_a_byte_of_clusters_is_refused():
    with pytest.raises(DlrunError, match=r"compression.cluster.clusters: expected an integer from 2 to 256, got 257"):
        cluster.build(IMAGES, clusters=257)
