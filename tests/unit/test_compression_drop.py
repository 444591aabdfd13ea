"""Dropping blocks and heads: what is chosen, that a smaller model equals the silenced one, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.fake_compression import (
    IMAGES,
    PAIRS,
    TEXTS,
    WINDOWS,
    Tools,
    images_net,
    pairs_net,
    read_back,
    rows,
    said,
    texts_net,
    windows_net,
)  # fmt: skip

from dlrun.compression import _transformers, drop_heads, drop_layers
from dlrun.contracts import DataSpec
from dlrun.decoding import ModelDecoder
from dlrun.errors import DlrunError
from dlrun.models import transformers

MODELS = {
    "gpt": (windows_net, WINDOWS),
    "gpt with rotations": (lambda: windows_net(positions="rope", bias=False), WINDOWS),
    "transformer_classifier": (texts_net, TEXTS),
    "transformer": (pairs_net, PAIRS),
    "bert": (lambda: texts_net("transformers"), TEXTS),
}
models = pytest.mark.parametrize("name", MODELS)
methods = pytest.mark.parametrize("method", [drop_layers, drop_heads], ids=["layers", "heads"])


@methods
@models
def test_a_share_of_zero_is_the_identity(method, name):
    make, spec = MODELS[name]
    tools = Tools(spec)
    model, plan = method.build(spec, share=0.0).compress(make(), tools)
    assert torch.equal(said(model, spec), said(make(), spec))
    assert tools.trained == tools.scored == 0
    assert plan["report"]["cost"] == {}


@methods
@models
def test_a_smaller_transformer_is_read_back_bit_for_bit(method, name):
    make, spec = MODELS[name]
    compressor = method.build(spec, share=0.4, finetune="1 epoch")
    tools = Tools(spec)
    model, plan = compressor.compress(make(), tools)
    before, after = plan["report"]["parameters"]
    assert after < before and after == sum(p.numel() for p in model.parameters())
    assert tools.trained == 1
    assert torch.equal(said(read_back(compressor, model, plan, make()), spec), said(model, spec))


@models
def test_taking_heads_out_equals_silencing_them(name):
    make, spec = MODELS[name]
    model = make()
    groups = _transformers.attentions(model)
    for group in groups:
        for attention in group:
            with torch.no_grad():
                columns = model.get_parameter(f"{attention.out}.weight")[:, attention.width : 2 * attention.width]
                columns.zero_()
    silent = said(model, spec)
    for group in groups:
        for attention in group:
            _transformers.keep_heads(model, attention, [0, 2, 3])
    torch.testing.assert_close(said(model, spec), silent, rtol=1e-5, atol=1e-5)


def test_a_head_and_a_block_that_add_nothing_go_first():
    model: Any = texts_net()
    with torch.no_grad():
        model.encoder.blocks[1].attention.out.weight[:, 8:12] = 0.0  # the third head
        model.encoder.blocks[1].attention.out.bias.zero_()
    tools = Tools(TEXTS)
    before = said(model, TEXTS)
    groups = _transformers.attentions(model)
    with drop_heads._silent(model, groups[1], 2):
        assert torch.equal(said(model, TEXTS), before)
    with torch.no_grad():
        model.encoder.blocks[1].attention.out.weight.zero_()
        model.encoder.blocks[1].feed_forward.down.weight.zero_()
        model.encoder.blocks[1].feed_forward.down.bias.zero_()
    tools.score = lambda model, split="valid": {  # type: ignore[method-assign]
        "accuracy": -float((said(model, TEXTS) - before_zero).abs().max())
    }
    before_zero = said(model, TEXTS)
    smaller, plan = drop_layers.build(TEXTS, share=1 / 3, finetune=None).compress(model, tools)
    assert plan["kept"] == {"encoder.blocks": [0, 2]}
    assert plan["report"]["cost"] == {"encoder.blocks.1": 0.0}
    assert torch.equal(said(smaller, TEXTS), before_zero)


@pytest.mark.parametrize(("search", "evaluations"), [("greedy", 1 + 3 + 1 + 2), ("once", 1 + 3)])
def test_greedy_asks_anew_after_each_block(search, evaluations):
    tools = Tools(TEXTS)
    drop_layers.build(TEXTS, share=2 / 3, search=search, finetune=None).compress(texts_net(), tools)
    assert tools.scored == evaluations


def test_every_layer_of_attention_keeps_a_head_and_every_stack_a_block():
    _, plan = drop_heads.build(WINDOWS, share=0.75, finetune=None).compress(windows_net(), Tools(WINDOWS))
    assert all(len(kept) >= 1 for kept in plan["kept"].values())
    _, plan = drop_layers.build(PAIRS, share=0.5, finetune=None).compress(pairs_net(), Tools(PAIRS))
    assert [len(kept) for kept in plan["kept"].values()] == [1, 1]


@methods
@pytest.mark.parametrize("name", ["gpt", "gpt with rotations"])
def test_generation_with_a_cache_goes_on_working(method, name):
    make, spec = MODELS[name]
    model, _ = method.build(spec, share=0.4, finetune=None).compress(make(), Tools(spec))
    assert_steps_equal_whole(model)


@methods
def test_a_librarys_generation_with_a_cache_goes_on_working(method):
    options = {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
        "intermediate_size": 32, "head_dim": 4,
    }  # fmt: skip
    model = transformers.build(WINDOWS, architecture="llama", dropout=0.0, options=options).eval()
    smaller, plan = method.build(WINDOWS, share=0.4, finetune=None).compress(model, Tools(WINDOWS))
    assert plan["kept"]
    assert_steps_equal_whole(smaller)


def assert_steps_equal_whole(model: Any) -> None:
    """A token at a time gives the logits of all at once."""
    tokens = rows(WINDOWS)["tokens"][:3]
    whole = model.eval()(tokens)
    decoder = ModelDecoder(model)
    logits, state = model.start(tokens[:, :4], torch.full((3,), 4))
    torch.testing.assert_close(logits, whole[:, 3], rtol=1e-4, atol=1e-5)
    for place in range(4, 7):
        logits, state = decoder.step(tokens[:, place], state)
        torch.testing.assert_close(logits.log_softmax(-1), whole[:, place].log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_a_translator_with_fewer_heads_says_the_same_with_its_cache():
    model: Any = drop_heads.build(PAIRS, share=0.4, finetune=None).compress(pairs_net(), Tools(PAIRS))[0].eval()
    batch = rows(PAIRS)
    whole = model(batch["source"], batch["source_lengths"], batch["tokens"])
    logits, state = model.start(batch["source"], batch["source_lengths"], batch["tokens"][:, 0])
    torch.testing.assert_close(logits, whole[:, 0], rtol=1e-4, atol=1e-5)
    logits, state = model.step(batch["tokens"][:, 1], state)
    torch.testing.assert_close(logits, whole[:, 1], rtol=1e-4, atol=1e-5)


def test_a_librarys_config_counts_the_blocks_that_are_left():
    model, _ = drop_layers.build(TEXTS, share=1 / 3, finetune=None).compress(texts_net("transformers"), Tools(TEXTS))
    assert model.body.config.num_hidden_layers == 2


def test_where_all_attention_is_left_alone_there_is_none_to_take_heads_from():
    with pytest.raises(DlrunError, match=r"drop_heads: .* has no attention whose heads can be taken out"):
        drop_heads.build(TEXTS, ignore=["*"]).compress(texts_net(), Tools(TEXTS))


def test_what_is_ignored_stays():
    method = drop_layers.build(TEXTS, share=2 / 3, finetune=None, ignore=["encoder.blocks.0"])
    _, plan = method.compress(texts_net(), Tools(TEXTS))
    assert plan["kept"] == {"encoder.blocks": [0]}


@pytest.mark.parametrize(
    ("method", "says"),
    [(drop_layers, "drop_layers: Cnn has no stack of transformer blocks"),
     (drop_heads, "drop_heads: Cnn has no attention whose heads can be taken out")],
    ids=["layers", "heads"],
)  # fmt: skip
def test_a_convolutional_network_is_refused(method, says):
    with pytest.raises(DlrunError) as error:
        method.build(IMAGES).compress(images_net(), Tools(IMAGES))
    assert error.value.message == says


@methods
def test_a_share_that_leaves_nothing_says_how_much_may_go(method):
    with pytest.raises(DlrunError, match=r"blocks, and no more than 2 may go|heads, and no more than 9 may go"):
        method.build(TEXTS, share=0.9, finetune=None).compress(texts_net(), Tools(TEXTS))


@methods
def test_the_smallest_share_still_takes_one(method):
    _, plan = method.build(TEXTS, share=0.01, finetune=None).compress(texts_net(), Tools(TEXTS))
    assert len(plan["report"]["cost"]) == 1


@methods
def test_settings_out_of_range_are_named(method):
    name = method.__name__.rpartition(".")[2]
    with pytest.raises(DlrunError, match=rf"compression.{name}.share: expected a number in \[0, 1\), got 1.0"):
        method.build(DataSpec((), "", {}, {}), share=1.0)
