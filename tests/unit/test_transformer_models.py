"""The own transformers: against torch's and transformers' networks with the same weights, and written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _transformer, gpt, transformer

V, LENGTH = 23, 12


def language() -> DataSpec:
    return DataSpec(("tokens",), "targets", {"vocabulary": V, "context": LENGTH}, {"tokens": (LENGTH,)})


def assert_close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def test_gpt_equals_transformers_gpt2_with_the_weights_copied():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=V, n_positions=LENGTH, n_embd=8, n_layer=2, n_head=2, activation_function="gelu",
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(config).eval()
    names = {
        "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2", "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj",
    }  # fmt: skip
    given = dict(theirs.state_dict())
    weights = {"tokens.weight": given["transformer.wte.weight"], "positions.weight": given["transformer.wpe.weight"]}
    weights |= {"head.weight": given["lm_head.weight"]}
    weights |= {f"norm.{part}": given[f"transformer.ln_f.{part}"] for part in ("weight", "bias")}
    for layer in range(2):
        for mine, other in names.items():
            for part in ("weight", "bias"):
                tensor = given[f"transformer.h.{layer}.{other}.{part}"]
                # GPT-2's linear layers hold their weights the other way round.
                weights[f"blocks.{layer}.{mine}.{part}"] = tensor.T if tensor.dim() == 2 else tensor
    own = gpt.build(language(), depth=2, heads=2, width=8).eval()
    own.load_state_dict(weights)
    tokens = torch.randint(V, (3, LENGTH))
    assert_close(own(tokens), theirs(tokens).logits)


def test_gpt_with_llamas_parts_equals_transformers_llama_with_the_weights_copied():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=V, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=LENGTH, rms_norm_eps=1e-6, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(config).eval()
    given = theirs.state_dict()
    weights = {"tokens.weight": given["model.embed_tokens.weight"], "norm.weight": given["model.norm.weight"]}
    weights |= {"head.weight": given["lm_head.weight"]}
    for layer in range(2):
        block, other = f"blocks.{layer}.", f"model.layers.{layer}."
        heads = [given[f"{other}self_attn.{part}_proj.weight"] for part in "qkv"]
        weights |= {
            block + "attention.qkv.weight": torch.cat(heads),
            block + "attention.out.weight": given[other + "self_attn.o_proj.weight"],
            **{
                block + f"feed_forward.{part}.weight": given[f"{other}mlp.{part}_proj.weight"]
                for part in ("gate", "up", "down")
            },
            block + "attention_norm.weight": given[other + "input_layernorm.weight"],
            block + "feed_forward_norm.weight": given[other + "post_attention_layernorm.weight"],
        }
    own = gpt.build(
        language(), depth=2, heads=2, width=8, hidden=12, positions="rope", norm="rms", activation="swiglu",
        bias=False, tied=False,
    ).eval()  # fmt: skip
    own.load_state_dict(weights)
    tokens = torch.randint(V, (3, LENGTH))
    assert_close(own(tokens), theirs(tokens).logits)


def copied(own: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Copy parameters of one module to the other by prefixes of their names."""
    given = dict(theirs.named_parameters())
    with torch.no_grad():
        for mine, other in names.items():
            for part in ("weight", "bias"):
                own.get_parameter(f"{mine}.{part}").copy_(given[other + part])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_the_transformer_equals_torchs_with_the_weights_copied():
    theirs = nn.Transformer(8, 2, 2, 2, 32, 0.0, "relu", batch_first=True, norm_first=True).eval()
    sizes = {"vocabulary": V, "target_vocabulary": V + 2, "length": 7, "target_length": 6}
    spec = DataSpec(("source", "source_lengths", "tokens"), "targets", sizes, {})
    own = transformer.build(spec, depth=2, heads=2, width=8).eval()
    for layer in range(2):
        mine, other = f"encoder.blocks.{layer}.", f"encoder.layers.{layer}."
        copied(own, theirs, {
            mine + "attention.qkv": other + "self_attn.in_proj_", mine + "attention.out": other + "self_attn.out_proj.",
            mine + "attention_norm": other + "norm1.", mine + "feed_forward_norm": other + "norm2.",
            mine + "feed_forward.up": other + "linear1.", mine + "feed_forward.down": other + "linear2.",
        })  # fmt: skip
        mine, other = f"blocks.{layer}.", f"decoder.layers.{layer}."
        copied(own, theirs, {
            mine + "causal.qkv": other + "self_attn.in_proj_", mine + "causal.out": other + "self_attn.out_proj.",
            mine + "cross.out": other + "multihead_attn.out_proj.", mine + "causal_norm": other + "norm1.",
            mine + "cross_norm": other + "norm2.", mine + "feed_forward_norm": other + "norm3.",
            mine + "feed_forward.up": other + "linear1.", mine + "feed_forward.down": other + "linear2.",
        })  # fmt: skip
        attention, cross = theirs.decoder.layers[layer].multihead_attn, own.blocks[layer].cross
        with torch.no_grad():
            for part in ("weight", "bias"):
                given = getattr(attention, f"in_proj_{part}")
                getattr(cross.q, part).copy_(given[:8])
                getattr(cross.kv, part).copy_(given[8:])
    copied(own, theirs, {"encoder.norm": "encoder.norm.", "norm": "decoder.norm."})
    source, lengths, tokens = torch.randint(V, (3, 7)), torch.tensor([7, 2, 5]), torch.randint(V, (3, 6))
    is_padding = torch.arange(7) >= lengths[:, None]
    is_later = nn.Transformer.generate_square_subsequent_mask(6)
    outputs = theirs(
        own.encoder.embedded(source), own.embedded(tokens), src_key_padding_mask=is_padding,
        memory_key_padding_mask=is_padding, tgt_mask=is_later, tgt_is_causal=True,
    )  # fmt: skip
    assert_close(own(source, lengths, tokens), own.head(outputs))


def test_sinusoids_equal_the_papers_formula():
    table = _transformer.sinusoids(5, 6)
    for position in range(5):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert_close(table[position, 2 * i : 2 * i + 2], torch.tensor([math.sin(angle), math.cos(angle)]))


def test_rotated_products_depend_on_distance_alone():
    torch.manual_seed(0)
    rotary = _transformer.Rotary(20, 6)
    q, k = torch.randn(6).expand(1, 20, 6), torch.randn(6).expand(1, 20, 6)
    products = (rotary(q)[0] @ rotary(k)[0].T).double()
    for distance in range(-19, 20):
        diagonal = products.diagonal(distance)
        assert_close(diagonal, diagonal[:1].expand_as(diagonal), 1e-4)


@pytest.mark.parametrize(("activation", "matrices"), [("gelu", 2 * 4), ("swiglu", 3 * 8 / 3)])
def test_every_feed_forward_layer_costs_about_the_same(activation, matrices):
    layer = _transformer.FeedForward(192, _transformer.hidden_width(None, 192, activation), activation, False, 0.0)
    assert sum(parameter.numel() for parameter in layer.parameters()) == matrices * 192**2


def test_what_adds_to_the_residual_stream_starts_smaller_by_the_root_of_how_often():
    torch.manual_seed(0)
    model = gpt.build(language(), depth=8, heads=4, width=128)
    for block in model.blocks:
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert block.feed_forward.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.head.weight is model.tokens.weight
