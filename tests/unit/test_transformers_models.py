"""Models of the transformers library: equal to its own, blind to padding, and generating as they are trained."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dlrun.contracts import DataSpec, FromLibrary, Pretrained, Weights
from dlrun.decoding import Generation, ModelDecoder, generate, select
from dlrun.errors import DlrunError, Exit
from dlrun.models import pretrained
from dlrun.models import transformers as front
from dlrun.tokens import FILE, Tokenizer
from dlrun.training import features
from dlrun.training.batches import placer
from dlrun.training.precision import Precision
from dlrun.transfer import _sources, feature_extraction, finetune

_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "roberta": _BERT,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": _BERT | {"num_key_value_heads": 1},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "bart": _BART,
    "marian": _BART,
}
MASKED, CAUSAL, BOTH_SIDES = ("bert", "distilbert", "roberta"), ("gpt2", "llama"), ("t5", "bart", "marian")
CLASSES = DataSpec(
    ("tokens", "lengths"), "label", {"classes": 3, "vocabulary": 20, "length": 12}, {"tokens": (12,), "lengths": ()}
)
WINDOWS = DataSpec(("tokens",), "targets", {"vocabulary": 20, "context": 8}, {"tokens": (8,)})
PAIRS = DataSpec(
    ("source", "source_lengths", "tokens"), "targets",
    {"vocabulary": 20, "target_vocabulary": 17, "length": 12, "target_length": 10},
    {"source": (12,), "source_lengths": (), "tokens": (10,)}, (), {"shared_vocabulary": False},
)  # fmt: skip
ONE_VOCABULARY = DataSpec(PAIRS.inputs, "targets", PAIRS.sizes | {"target_vocabulary": 20}, PAIRS.shapes)
IMAGES = DataSpec(("image",), "label", {"classes": 3}, {"image": (1, 8, 8)})


@pytest.fixture(autouse=True)
def evaluating():
    """No test here trains but those that say so."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def tiny(architecture: str, spec: DataSpec, **settings: Any) -> Any:
    torch.manual_seed(1)
    return front.build(spec, architecture=architecture, options=TINY[architecture], **settings).eval()


def texts(*lengths: int, vocabulary: int = 20) -> tuple[Tensor, Tensor]:
    """Random tokens [B, T] padded with 0, and lengths [B]."""
    lengths_B = torch.tensor(lengths)
    tokens_BT = torch.randint(1, vocabulary, (len(lengths), max(lengths)))
    return tokens_BT * (torch.arange(max(lengths)) < lengths_B[:, None]), lengths_B


def assert_close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


class FromDisk:
    """Tools that read what a source names."""

    seed, assets = 0, None

    def weights(self, source: str) -> Weights:
        return _sources.read(source)


def config_of(architecture: str, **changes: Any) -> Any:
    facts = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    facts |= {"decoder_start_token_id": 0, "forced_eos_token_id": None} if architecture in ("bart", "marian") else {}
    facts |= {} if architecture == "t5" else {"max_position_embeddings": 32}
    return transformers.AutoConfig.for_model(architecture, **facts | TINY[architecture] | changes)


def saved(kind: Any, config: Any, folder: Path) -> Any:
    """A model of the library, on disk as it is published."""
    transformers.logging.disable_progress_bar()
    torch.manual_seed(3)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def loaded(folder: Path, spec: DataSpec, **settings: Any) -> Any:
    """Our model of a folder, with its weights."""
    model = pretrained.build(spec, path=str(folder), **settings)
    finetune.build(model, spec, FromDisk(), str(folder))
    return model.eval()


# ---------------------------------------------------------------- equal to the library's own


@pytest.mark.parametrize(("kind", "architecture"), [
    (transformers.GPT2LMHeadModel, "gpt2"), (transformers.LlamaForCausalLM, "llama"),
    (transformers.BertForMaskedLM, "bert"), (transformers.DistilBertForMaskedLM, "distilbert"),
    (transformers.RobertaForMaskedLM, "roberta"),
])  # fmt: skip
def test_a_language_model_of_a_folder_equals_the_librarys(tmp_path, kind, architecture):
    theirs = saved(kind, config_of(architecture), tmp_path)
    model = pretrained.build(WINDOWS, path=str(tmp_path))
    result = finetune.build(model, WINDOWS, FromDisk(), str(tmp_path))
    tokens_BT, _ = texts(8, 8, 8)
    assert (result.missing, result.unexpected, result.head) == ([], [], "")
    assert_close(model.eval()(tokens_BT), theirs(input_ids=tokens_BT).logits)
    assert model.is_causal == (architecture in CAUSAL)


@pytest.mark.parametrize(("kind", "architecture"), [
    (transformers.T5ForConditionalGeneration, "t5"), (transformers.BartForConditionalGeneration, "bart"),
    (transformers.MarianMTModel, "marian"),
])  # fmt: skip
def test_a_sequence_model_of_a_folder_equals_the_librarys(tmp_path, kind, architecture):
    theirs = saved(kind, config_of(architecture), tmp_path)
    model = pretrained.build(ONE_VOCABULARY, path=str(tmp_path))
    result = finetune.build(model, ONE_VOCABULARY, FromDisk(), str(tmp_path))
    assert [name for name in result.missing if "embed_positions" not in name] == []  # Marian's are computed, not saved
    assert result.unexpected == []
    source_BS, lengths_B = texts(9, 4)
    tokens_BT, _ = texts(5, 5)
    mask_BS = (torch.arange(9) < lengths_B[:, None]).long()
    expected = theirs(input_ids=source_BS, attention_mask=mask_BS, decoder_input_ids=tokens_BT).logits
    assert_close(model.eval()(source_BS, lengths_B, tokens_BT), expected)


@pytest.mark.parametrize(("kind", "architecture", "pooling", "head"), [
    (transformers.BertForSequenceClassification, "bert", "cls", "classifier"),
    (transformers.GPT2ForSequenceClassification, "gpt2", "last", "score"),
    (transformers.LlamaForSequenceClassification, "llama", None, "score"),
])  # fmt: skip
def test_a_classifier_of_a_folder_equals_the_librarys(tmp_path, kind, architecture, pooling, head):
    theirs = saved(kind, config_of(architecture, num_labels=3), tmp_path)
    model = pretrained.build(CLASSES, path=str(tmp_path), pooling=pooling)
    result = finetune.build(model, CLASSES, FromDisk(), str(tmp_path))
    assert set(result.missing) == {"head.weight", "head.bias"} and result.head == "head"
    assert {name.rpartition(".")[0] for name in result.unexpected} == {head}
    theirs_head = getattr(theirs, head)
    model.head.weight.copy_(theirs_head.weight)
    model.head.bias.copy_(torch.zeros(3) if theirs_head.bias is None else theirs_head.bias)
    tokens_BT, lengths_B = texts(9, 4, 1)
    mask_BT = (torch.arange(9) < lengths_B[:, None]).long()
    assert_close(model.eval()(tokens_BT, lengths_B), theirs(input_ids=tokens_BT, attention_mask=mask_BT).logits)


def test_the_mean_is_that_of_sentence_encoders(tmp_path):
    theirs = saved(transformers.BertModel, config_of("bert"), tmp_path)
    model = loaded(tmp_path, CLASSES, pooling="mean")
    tokens_BT, lengths_B = texts(9, 4)
    mask_BT = (torch.arange(9) < lengths_B[:, None]).long()
    states_BTD = theirs(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state
    mean_BD = (states_BTD * mask_BT[..., None]).sum(1) / lengths_B[:, None]
    assert_close(model(tokens_BT, lengths_B), model.head(mean_BD))


def test_roberta_tells_padding_by_its_own_number(tmp_path):
    theirs = saved(transformers.RobertaModel, config_of("roberta", pad_token_id=1), tmp_path)
    model = loaded(tmp_path, CLASSES)
    tokens_BT, lengths_B = texts(9, 4)
    tokens_BT[:, 0] = 0  # its <s>
    is_real_BT = torch.arange(9) < lengths_B[:, None]
    said = theirs(input_ids=tokens_BT.masked_fill(~is_real_BT, 1), attention_mask=is_real_BT.long())
    mean_BD = (said.last_hidden_state * is_real_BT[..., None]).sum(1) / lengths_B[:, None]
    assert_close(model(tokens_BT, lengths_B), model.head(mean_BD))


# ---------------------------------------------------------------- shapes, padding, gradients


@pytest.mark.parametrize("architecture", TINY)
def test_a_class_is_told_alike_however_far_a_text_is_padded(architecture):
    model = tiny(architecture, CLASSES)
    tokens_BT, lengths_B = texts(7, 3, 1)
    logits_BC = model(tokens_BT, lengths_B)
    assert logits_BC.shape == (3, 3)
    further_BT = torch.cat([tokens_BT, torch.randint(1, 20, (3, 5))], 1)
    assert_close(model(further_BT, lengths_B), logits_BC)
    for row, length in enumerate(lengths_B):
        assert_close(model(tokens_BT[row : row + 1, :length], lengths_B[row : row + 1]), logits_BC[row : row + 1])


@pytest.mark.parametrize("architecture", BOTH_SIDES)
def test_a_target_is_told_alike_however_far_its_source_is_padded(architecture):
    model = tiny(architecture, PAIRS)
    source_BS, lengths_B = texts(7, 3)
    tokens_BT, _ = texts(5, 5, vocabulary=17)
    logits_BTV = model(source_BS, lengths_B, tokens_BT)
    assert logits_BTV.shape == (2, 5, 17)
    further_BS = torch.cat([source_BS, torch.randint(1, 20, (2, 5))], 1)
    assert_close(model(further_BS, lengths_B, tokens_BT), logits_BTV)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 3:] = 1
    assert_close(model(source_BS, lengths_B, changed_BT)[:, :3], logits_BTV[:, :3])


@pytest.mark.parametrize("architecture", [*MASKED, *CAUSAL])
def test_a_token_is_told_alike_however_far_its_text_is_padded(architecture):
    model = tiny(architecture, WINDOWS)
    tokens_BT, lengths_B = texts(6, 3)
    padded_BT = torch.nn.functional.pad(tokens_BT, (0, 2))
    for row, length in enumerate(lengths_B):
        alone = model(tokens_BT[row : row + 1, :length])
        assert alone.shape == (1, length, 20)
        assert_close(model(padded_BT)[row : row + 1, :length], alone)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_causal_model_sees_nothing_to_come(architecture):
    model = tiny(architecture, WINDOWS)
    tokens_BT, _ = texts(8, 8)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 5:] = 1
    assert_close(model(changed_BT)[:, :5], model(tokens_BT)[:, :5])


@pytest.mark.parametrize(("architecture", "spec"), [
    *((name, CLASSES) for name in TINY), *((name, WINDOWS) for name in (*MASKED, *CAUSAL)),
    *((name, PAIRS) for name in BOTH_SIDES),
])  # fmt: skip
def test_every_parameter_trains(architecture, spec):
    model = front.build(spec, architecture=architecture, options=TINY[architecture])
    tokens_BT, lengths_B = texts(8, 4)
    fields = {"tokens": tokens_BT.clamp(max=16), "lengths": lengths_B, "source": tokens_BT, "source_lengths": lengths_B}
    with torch.enable_grad():
        model(*(fields[name] for name in spec.inputs)).logsumexp(-1).sum().backward()
    # Marian's positions are sinusoids.
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert [name for name in still if architecture != "marian" or "embed_positions" not in name] == []


def test_the_seed_decides_the_weights():
    first, second = tiny("bert", CLASSES), tiny("bert", CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_pooling_of_the_first_token_goes_through_berts_own_layer_alone():
    assert tiny("bert", CLASSES, pooling="cls").body.pooler is not None
    assert tiny("bert", CLASSES, pooling="mean").body.pooler is None
    assert not hasattr(tiny("distilbert", CLASSES, pooling="cls").body, "pooler")
    assert (tiny("bert", CLASSES).pooling, tiny("gpt2", CLASSES).pooling) == ("mean", "last")


def test_two_vocabularies_have_embeddings_of_their_own_and_one_is_shared():
    for architecture in BOTH_SIDES:
        network = tiny(architecture, PAIRS).network
        assert network.get_encoder().get_input_embeddings().weight.shape == (20, 16)
        assert network.get_output_embeddings().weight.shape == (17, 16)
        network = tiny(architecture, ONE_VOCABULARY).network
        assert network.get_encoder().get_input_embeddings().weight is network.get_output_embeddings().weight


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("architecture", CAUSAL)
def test_steps_equal_the_whole_text_read_anew_also_when_the_window_moves(architecture):
    model = tiny(architecture, WINDOWS)
    prompts_BT, lengths_B = texts(5, 2, 3)
    told = [prompts_BT[row, :length].tolist() for row, length in enumerate(lengths_B)]
    logits_BV, state = model.start(prompts_BT, lengths_B)
    for step in range(10):
        anew = [model(torch.tensor([tokens[-8:]]))[0, -1] for tokens in told]
        assert_close(logits_BV, torch.stack(anew))
        if step == 4:  # the second has ended, and the third leads two hypotheses
            rows = torch.tensor([0, 2, 2])
            told, state, logits_BV = [list(told[row]) for row in rows], select(state, rows), logits_BV[rows]
        tokens_B = torch.randint(1, 20, (3,))
        for tokens, token in zip(told, tokens_B.tolist(), strict=True):
            tokens.append(token)
        logits_BV, state = model.step(tokens_B, state)


def test_a_prompt_longer_than_the_context_is_read_from_behind():
    model = tiny("gpt2", WINDOWS)
    prompts_BT, lengths_B = texts(13, 4)
    logits_BV, _ = model.start(prompts_BT, lengths_B)
    assert_close(logits_BV[:1], model(prompts_BT[:1, 5:])[:, -1])
    assert_close(logits_BV[1:], model(prompts_BT[1:, :4])[:, -1])


@pytest.mark.parametrize("architecture", BOTH_SIDES)
def test_steps_of_a_target_equal_the_whole_target(architecture):
    model = tiny(architecture, PAIRS)
    source_BS, lengths_B = texts(7, 3, 5)
    tokens_BT, _ = texts(6, 6, 6, vocabulary=17)
    whole_BTV = model(source_BS, lengths_B, tokens_BT)
    logits_BV, state = model.start(source_BS, lengths_B, tokens_BT[:, 0])
    for place in range(1, 6):
        assert_close(logits_BV, whole_BTV[:, place - 1])
        if place == 3:
            rows = torch.tensor([2, 0, 2])
            whole_BTV, tokens_BT, state = whole_BTV[rows], tokens_BT[rows], select(state, rows)
        logits_BV, state = model.step(tokens_BT[:, place], state)
    assert_close(logits_BV, whole_BTV[:, 5])


def test_beam_search_of_one_equals_greedy_search():
    model = tiny("t5", PAIRS)
    source_BS, lengths_B = texts(7, 3)
    inputs = [source_BS, lengths_B, torch.ones(2, dtype=torch.int64)]
    said = [
        generate(ModelDecoder(model), inputs, Generation(max_tokens=5, beams=beams), None, torch.arange(2))
        for beams in (1, 3)
    ]
    assert bool((said[1].log_probs_B >= said[0].log_probs_B - 1e-5).all())


def test_a_decoder_says_no_more_than_it_has_positions():
    model = front.build(PAIRS, architecture="bart", options=TINY["bart"] | {"max_position_embeddings": 12}).eval()
    source_BS, lengths_B = texts(4)
    _, state = model.start(source_BS, lengths_B, torch.tensor([1]))
    for _ in range(11):
        _, state = model.step(torch.tensor([1]), state)
    with pytest.raises(DlrunError, match="bart says at most 12 tokens here"):
        model.step(torch.tensor([1]), state)


# ---------------------------------------------------------------- other weights of the same architecture


def test_weights_of_a_body_alone_fit_a_language_model(tmp_path):
    theirs = saved(transformers.GPT2Model, config_of("gpt2"), tmp_path)
    model = loaded(tmp_path, WINDOWS)
    assert torch.equal(model.network.transformer.h[1].attn.c_attn.weight, theirs.h[1].attn.c_attn.weight)
    assert torch.equal(model.network.lm_head.weight, theirs.wte.weight)


@pytest.mark.parametrize("architecture", [*MASKED, *CAUSAL])
def test_weights_of_a_language_model_fit_a_classifier(architecture):
    language, model = tiny(architecture, WINDOWS), tiny(architecture, CLASSES)
    given = Weights(language.state_dict(), "run 1")
    result = finetune.build(model, CLASSES, type("Given", (), {"weights": lambda self, _: given})(), "run:1")
    expected = {"head.weight", "head.bias"}
    if architecture not in ("llama",):
        expected |= {name for name in result.missing if "position" in name or "wpe" in name}  # 8 places, not 12
    assert set(result.missing) == expected


@pytest.mark.parametrize(("kind", "architecture"), [
    (transformers.T5ForConditionalGeneration, "t5"), (transformers.BartForConditionalGeneration, "bart"),
    (transformers.MarianMTModel, "marian"),
])  # fmt: skip
def test_the_encoder_of_a_sequence_model_tells_classes(tmp_path, kind, architecture):
    theirs = saved(kind, config_of(architecture), tmp_path)
    model = pretrained.build(CLASSES, path=str(tmp_path))
    result = finetune.build(model, CLASSES, FromDisk(), str(tmp_path))
    assert set(result.missing) - {"body.embed_positions.weight"} == {"head.weight", "head.bias"}
    assert all(name.startswith(("decoder", "model.decoder", "lm_head", "final_logits")) for name in result.unexpected)
    tokens_BT, lengths_B = texts(9, 9)
    states_BTD = theirs.get_encoder()(input_ids=tokens_BT).last_hidden_state
    assert_close(model.eval()(tokens_BT, lengths_B), model.head(states_BTD.mean(1)))


def test_names_of_weights_from_tensorflow_are_understood(tmp_path):
    theirs = saved(transformers.BertForMaskedLM, config_of("bert"), tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file)
    model = loaded(tmp_path, WINDOWS)
    tokens_BT, _ = texts(8)
    assert_close(model(tokens_BT), theirs(input_ids=tokens_BT).logits)


# ---------------------------------------------------------------- folders


def test_a_pretrained_model_says_where_its_weights_are_and_keeps_its_description(tmp_path):
    saved(transformers.BertModel, config_of("bert"), tmp_path / "bert")
    model = pretrained.build(CLASSES, path=str(tmp_path / "bert"))
    assert isinstance(model, Pretrained) and isinstance(model, FromLibrary)
    assert model.source == str(tmp_path / "bert")
    kept = DataSpec(CLASSES.inputs, "label", CLASSES.sizes, CLASSES.shapes, files=model.files)
    (tmp_path / "bert").rename(tmp_path / "elsewhere")
    again = pretrained.build(kept, path=str(tmp_path / "bert"))
    assert again.state_dict().keys() == model.state_dict().keys()


def test_options_differ_from_the_folders(tmp_path):
    saved(transformers.BertModel, config_of("bert"), tmp_path)
    model = loaded(tmp_path, CLASSES, options={"num_hidden_layers": 1, "hidden_dropout_prob": 0.4})
    assert len(model.body.encoder.layer) == 1
    assert model.body.embeddings.dropout.p == 0.4


def test_half_precision_weights_train_in_single(tmp_path):
    saved(transformers.BertModel, config_of("bert", dtype="float16"), tmp_path)
    model = loaded(tmp_path, CLASSES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_only_settings_are_taken_from_a_config(tmp_path):
    saved(transformers.BertModel, config_of("bert"), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {
        "auto_map": {"AutoModel": "evil--evil.Model"},
        "_attn_implementation_internal": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "evil"},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = loaded(tmp_path, CLASSES).body.config
    assert not hasattr(config, "auto_map") and not hasattr(config, "quantization_config")
    assert config._attn_implementation in ("sdpa", "eager")


def write_config(folder: Path, **values: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_folders_that_are_no_model_are_refused(tmp_path):
    spec = CLASSES
    with pytest.raises(DlrunError, match=r"no folder '.*/brt'") as caught:
        (tmp_path / "bert").mkdir()
        pretrained.build(spec, path=str(tmp_path / "brt"))
    assert caught.value.hint == "did you mean bert?"
    with pytest.raises(DlrunError, match=r"bert holds no config\.json") as caught:
        pretrained.build(spec, path=str(tmp_path / "bert"))
    assert caught.value.code == Exit.DATA
    with pytest.raises(DlrunError, match="describes no model of transformers: it names no model_type"):
        pretrained.build(spec, path=write_config(tmp_path / "resnet", depth=18))
    with pytest.raises(DlrunError, match="transformers has no 'brt'") as caught:
        pretrained.build(spec, path=write_config(tmp_path / "brt", model_type="brt"))
    assert "did you mean" in caught.value.hint
    source = write_config(tmp_path / "bert", model_type="bert", **TINY["bert"], vocab_size=20)
    with pytest.raises(DlrunError, match="bert holds no weights") as caught:
        finetune.build(pretrained.build(spec, path=source), spec, FromDisk(), source)
    assert "model.safetensors" in caught.value.hint


def test_weights_of_another_architecture_are_refused(tmp_path):
    saved(transformers.RobertaModel, config_of("roberta"), tmp_path)
    with pytest.raises(DlrunError, match="holds a roberta; the model is a bert") as caught:
        finetune.build(tiny("bert", CLASSES), CLASSES, FromDisk(), str(tmp_path))
    assert caught.value.hint == f"model=pretrained model.path={tmp_path}"


def test_data_that_does_not_fit_a_folder_is_refused(tmp_path):
    source = write_config(tmp_path, model_type="bert", vocab_size=15, max_position_embeddings=10, **TINY["bert"])
    with pytest.raises(DlrunError, match="takes sequences of at most 10 tokens; the data has up to 12") as caught:
        pretrained.build(CLASSES, path=source)
    assert caught.value.hint == "data.max_length=10"
    with pytest.raises(DlrunError, match="knows 15 tokens; the data's vocabulary has 20") as caught:
        pretrained.build(WINDOWS, path=source)
    assert caught.value.hint == f"data.tokenizer=pretrained data.pretrained={source}"
    source = write_config(tmp_path / "t5", model_type="t5", vocab_size=20, **TINY["t5"])
    with pytest.raises(DlrunError, match="t5 was trained with one vocabulary; this data has two"):
        pretrained.build(PAIRS, path=source)


def test_a_vocabulary_that_the_weights_were_not_trained_with_is_refused(tmp_path):
    saved(transformers.BertModel, config_of("bert"), tmp_path)
    made = Tokenizer.train("word", ["the cat sat on the mat"], size=100)
    spec = replace(CLASSES, sizes=CLASSES.sizes | {"vocabulary": made.size}, files={FILE: made.to_json()})
    with pytest.raises(
        DlrunError, match=r"know tokens by other numbers than this data's own vocabulary \(word\)"
    ) as caught:
        pretrained.build(spec, path=str(tmp_path))
    assert caught.value.hint == f"data.tokenizer=pretrained data.pretrained={tmp_path}"
    of_run = replace(spec, files=spec.files | {"architecture.json": (tmp_path / "config.json").read_bytes()})
    pretrained.build(of_run, path=str(tmp_path))  # a run reads its own spec back
    (tmp_path / FILE).write_bytes(made.to_json())
    pretrained.build(spec, path=str(tmp_path))  # the folder's own vocabulary, of whatever kind
    (tmp_path / FILE).write_bytes(Tokenizer.train("word", ["a dog"], size=100).to_json())
    with pytest.raises(DlrunError, match="other numbers"):
        pretrained.build(spec, path=str(tmp_path))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("architecture", "spec", "settings", "message"), [
    ("brt", CLASSES, {}, "model.architecture: transformers has no 'brt'"),
    ("bert", CLASSES, {"options": {"hiden_size": 3}}, "model.options: bert has no 'hiden_size'"),
    ("bert", CLASSES, {"options": {"vocab_size": 3}}, "model.options.vocab_size: is a fact of the data"),
    ("bert", CLASSES, {"options": {"pad_token_id": 3}}, "model.options.pad_token_id: is a fact of the data"),
    ("bert", CLASSES, {"options": {"hidden_size": "a"}}, "bert does not work with hidden_size=a"),
    ("bert", CLASSES, {"options": {"hidden_size": 30, "num_attention_heads": 4}}, "not a multiple of the number of"),
    ("bert", CLASSES, {"options": {"hidden_act": "gelo"}}, "bert does not work with hidden_act=gelo"),
    ("bert", CLASSES, {"options": _BERT | {"max_position_embeddings": 5}}, "at most 5 tokens; the data has up to 12"),
    ("roberta", CLASSES, {"options": _BERT | {"max_position_embeddings": 12}}, "at most 11 tokens"),
    ("bert", CLASSES, {"dropout": 1.0}, "model.dropout: expected a number in [0, 1), got 1.0"),
    ("bert", PAIRS, {"options": _BERT}, "bert says no sequence from another"),
    ("t5", WINDOWS, {"options": TINY["t5"]}, "t5 is no language model"),
    ("gpt2", WINDOWS, {"options": TINY["gpt2"], "pooling": "mean"}, "model.pooling: this data has no classes"),
    ("bert", IMAGES, {"options": _BERT}, "needs data with 'vocabulary'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(architecture, spec, settings, message):
    with pytest.raises(DlrunError) as caught:
        front.build(spec, architecture=architecture, **settings)
    assert message in str(caught.value)


def test_torch_says_nothing_of_the_librarys_classes():
    tiny("bert", CLASSES)
    assert not logging.getLogger("torch.utils._pytree").isEnabledFor(logging.WARNING)


def test_a_misspelt_option_gets_the_right_one():
    with pytest.raises(DlrunError) as caught:
        front.build(CLASSES, architecture="gpt2", options={"n_layers": 2})
    assert caught.value.hint == "did you mean n_layer?"


def test_a_text_beyond_the_context_is_refused():
    with pytest.raises(DlrunError, match="9 tokens are more than the context of 8"):
        tiny("gpt2", WINDOWS)(torch.ones(1, 9, dtype=torch.int64))


# ---------------------------------------------------------------- features and graphs


class Rows:
    """Texts of unequal length, padded batch by batch."""

    in_memory = True

    def __init__(self, tokens_BT: Tensor, lengths_N: Tensor) -> None:
        self.tokens, self.lengths = tokens_BT, lengths_N

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, rows_B: Tensor) -> dict[str, Tensor]:
        lengths_B = self.lengths[rows_B]
        return {"id": rows_B, "tokens": self.tokens[rows_B, : int(lengths_B.max())], "lengths": lengths_B}


def test_cached_features_of_texts_are_what_enters_the_head(tmp_path):
    saved(transformers.BertModel, config_of("bert"), tmp_path)
    model = pretrained.build(CLASSES, path=str(tmp_path))
    result = feature_extraction.build(model, CLASSES, FromDisk(), str(tmp_path))
    assert result.cache_features and result.head == "head" and result.frozen == ("body", "dropout")
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    tokens_BT, lengths_B = texts(3, 9, 1, 5, 7)
    split = features.extract(
        model, "head", Rows(tokens_BT, lengths_B), features.AsStored(), CLASSES.inputs, batch_size=2,
        place=placer(torch.device("cpu"), False), precision=Precision.of("fp32", torch.device("cpu")),
    )  # fmt: skip
    batch = split.gather(torch.arange(5))
    assert batch["id"].tolist() == [0, 1, 2, 3, 4] and batch["features"].shape == (5, 16)
    assert_close(model.head(batch["features"]), model.eval()(tokens_BT, lengths_B))


def test_features_of_tokens_are_not_cached():
    model = tiny("bert", WINDOWS)
    given = Weights(model.state_dict(), "run 1")
    result = feature_extraction.build(model, WINDOWS, type("Given", (), {"weights": lambda self, _: given})(), "run:1")
    assert not result.cache_features


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "spec"), [
    *((name, CLASSES) for name in TINY), *((name, WINDOWS) for name in (*MASKED, *CAUSAL)),
    *((name, PAIRS) for name in BOTH_SIDES),
])  # fmt: skip
def test_a_model_is_one_graph_of_any_batch_and_length(architecture, spec):
    model = tiny(architecture, spec).exportable()
    assert isinstance(model, nn.Module)

    def fields(batch: int, length: int) -> tuple[Tensor, ...]:
        tokens_BT, lengths_B = texts(length, *[length - 2] * (batch - 1), vocabulary=17)
        made = {"tokens": tokens_BT, "lengths": lengths_B, "source": tokens_BT, "source_lengths": lengths_B}
        return tuple(made[name] for name in spec.inputs)

    examples = fields(3, 6)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        model, examples, dynamic_shapes=tuple({axis: auto for axis in range(field.dim())} for field in examples)
    )
    others = fields(2, 5)
    assert_close(exported.module()(*others), model(*others))
