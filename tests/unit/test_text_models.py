"""The own models of text, all together: what padding, later tokens, caches and exports may not change."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import (
    _text,
    bag,
    gpt,
    rnn,
    rnn_language,
    seq2seq_rnn,
    textcnn,
    transformer,
    transformer_classifier,
)

V, LENGTH = 23, 12


def classes(**sizes: int) -> DataSpec:
    sizes = {"vocabulary": V, "length": LENGTH, "classes": 3} | sizes
    return DataSpec(("tokens", "lengths"), "label", sizes, {"tokens": (sizes["length"],), "lengths": ()})


def language(context: int = LENGTH) -> DataSpec:
    return DataSpec(("tokens",), "targets", {"vocabulary": V, "context": context}, {"tokens": (context,)})


def pairs(target_length: int = LENGTH, target_vocabulary: int = V + 2) -> DataSpec:
    sizes = {"vocabulary": V, "target_vocabulary": target_vocabulary, "length": LENGTH, "target_length": target_length}
    return DataSpec(("source", "source_lengths", "tokens"), "targets", sizes, {})


CLASSIFIERS = {
    "bag": lambda spec: bag.build(spec, widths=(9,), width=8),
    "bag of maxima": lambda spec: bag.build(spec, width=8, pooling="max"),
    "bag of sums": lambda spec: bag.build(spec, width=8, pooling="sum"),
    "textcnn": lambda spec: textcnn.build(spec, width=8, filters=5, kernels=(1, 3, 4)),
    "lstm": lambda spec: rnn.build(spec, width=8, hidden=6, layers=2),
    "gru, last": lambda spec: rnn.build(spec, cell="gru", width=8, hidden=6, pooling="last"),
    "elman, one way, mean": lambda spec: rnn.build(spec, cell="rnn", width=8, hidden=6, bidirectional=False,
                                                   pooling="mean"),
    "transformer": lambda spec: transformer_classifier.build(spec, depth=2, heads=2, width=8),
    "transformer, cls": lambda spec: transformer_classifier.build(
        spec, depth=2, heads=2, width=8, pooling="cls", positions="sinusoidal", norm="rms", activation="swiglu"
    ),
}  # fmt: skip
LANGUAGE = {
    "gpt": lambda spec: gpt.build(spec, depth=2, heads=2, width=8),
    "gpt with Llama's parts": lambda spec: gpt.build(
        spec, depth=2, heads=2, width=8, positions="rope", norm="rms", activation="swiglu", bias=False
    ),
    "lstm": lambda spec: rnn_language.build(spec, width=8, hidden=6, layers=2),
    "gru, tied": lambda spec: rnn_language.build(spec, cell="gru", width=6, hidden=6, tied=True),
    "elman": lambda spec: rnn_language.build(spec, cell="rnn", width=8, hidden=6),
}
SEQ2SEQ = {
    "bahdanau": lambda spec: seq2seq_rnn.build(spec, width=8, hidden=6),
    "luong": lambda spec: seq2seq_rnn.build(spec, attention="luong", cell="lstm", width=8, hidden=6, layers=2),
    "one way": lambda spec: seq2seq_rnn.build(spec, cell="rnn", width=8, hidden=6, bidirectional=False, tied=False),
    "transformer": lambda spec: transformer.build(spec, depth=2, heads=2, width=8),
}


def made(builder, spec: DataSpec, seed: int = 0) -> nn.Module:
    """A model in evaluation, its weights large enough that everything it sees matters."""
    torch.manual_seed(seed)
    model = builder(spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def assert_close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, V, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- shapes and settings


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("outputs", ["classes", "labels", "targets"])
def test_a_classifier_gives_a_logit_for_each_class_label_or_target_and_trains_all_its_parameters(name, outputs):
    spec = DataSpec(("tokens", "lengths"), "label", {"vocabulary": V, "length": LENGTH, outputs: 4}, {})
    model = CLASSIFIERS[name](spec)
    tokens = random_tokens(5, LENGTH)
    logits = model(tokens, torch.tensor([1, 3, LENGTH, 2, 7]))
    assert logits.shape == (5, 4)
    assert isinstance(model.head, nn.Linear) and model.head.out_features == 4
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "spec", "setting", "message"),
    [
        (gpt.build, language(), {"heads": 3}, "model.heads: 3 heads do not share out a width of 128"),
        (gpt.build, language(), {"heads": 2, "width": 6, "positions": "rope"}, "2 heads have 3 of the width each"),
        (gpt.build, language(), {"depth": 0}, "model.depth: expected an integer of at least 1, got 0"),
        (gpt.build, language(), {"hidden": 0}, "model.hidden: expected an integer of at least 1, or null, got 0"),
        (gpt.build, classes(), {}, "this task or model needs data with 'context'"),
        (bag.build, classes(), {"word_dropout": 1.0}, "model.word_dropout: expected a number in [0, 1), got 1.0"),
        (bag.build, classes(), {"embedding_std": 0.0}, "model.embedding_std: expected a number above 0, got 0.0"),
        (textcnn.build, classes(), {"kernels": ()}, "model.kernels: expected at least one size, got []"),
        (rnn.build, classes(), {"layers": 0}, "model.layers: expected an integer of at least 1, got 0"),
        (rnn_language.build, language(), {"tied": True}, "embeddings are 128 wide and the head's inputs 256"),
        (seq2seq_rnn.build, language(), {}, "model: seq2seq_rnn needs a source; this data has tokens"),
        (transformer.build, language(), {}, "model: transformer needs a source; this data has tokens"),
        (transformer.build, pairs(), {"shared": True}, "source and target have vocabularies of 23 and 25"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_a_sentence(build, spec, setting, message):
    with pytest.raises(DlrunError) as caught:
        build(spec, **setting)
    assert message in caught.value.message


def test_a_number_of_heads_that_does_not_fit_gets_the_nearest_that_does():
    with pytest.raises(DlrunError) as caught:
        gpt.build(language(), heads=5, width=128)
    assert caught.value.hint == "model.heads=4"


@pytest.mark.parametrize("build", [gpt.build, transformer_classifier.build])
def test_a_text_longer_than_the_learned_positions_is_refused(build):
    model = build(language(4), depth=1, heads=1, width=4)
    with pytest.raises(DlrunError, match="5 tokens"):
        model(random_tokens(1, 5))


def test_shared_and_tied_embeddings_are_one_tensor():
    model = transformer.build(pairs(target_vocabulary=V), depth=1, heads=2, width=8, shared=True)
    assert model.encoder.embedded.tokens.weight is model.embedded.tokens.weight is model.head.weight


# ---------------------------------------------------------------- bag and textcnn, written out


def test_a_bag_is_a_linear_layer_on_the_mean_of_the_vectors():
    model = made(lambda spec: bag.build(spec, width=4), classes())
    vectors = model.tokens.weight
    expected = (vectors[3] + vectors[5] + vectors[3]) / 3 @ model.head.weight.T + model.head.bias
    assert_close(model(torch.tensor([[3, 5, 3, 0]]), torch.tensor([3]))[0], expected)


def test_word_dropout_leaves_out_tokens_and_never_all_of_them():
    model = bag.build(classes(), width=4, word_dropout=0.9)
    lengths = torch.arange(1, 13)
    is_token = _text.is_token(torch.zeros(12, 12), lengths)
    torch.manual_seed(0)
    kept = torch.stack([model._some(is_token) for _ in range(300)])
    assert (kept & ~is_token).sum() == 0
    assert (kept.sum(2) >= 1).all()
    # Of 12 tokens 1.2 stay, and one more where that were none: 0.9^12 = 0.28.
    assert kept[:, 11].sum(1).double().mean() == pytest.approx(1.2 + 0.28, abs=0.2)


def test_textcnn_equals_its_filters_written_out_window_by_window():
    model = made(lambda spec: textcnn.build(spec, width=4, filters=3, kernels=(2, 3), activation="relu"), classes())
    tokens = random_tokens(1, 5)
    vectors = model.tokens(tokens)[0]
    features = []
    for layer, size in zip(model.convolutions, (2, 3), strict=True):
        padded = F.pad(vectors, (0, 0, size - 1, size - 1))
        answers = [(layer.weight * padded[i : i + size].T).sum((1, 2)) + layer.bias for i in range(5 + size - 1)]
        features.append(torch.stack(answers).relu().amax(0))
    assert_close(model(tokens, torch.tensor([5]))[0], torch.cat(features) @ model.head.weight.T + model.head.bias)


def test_hidden_tokens_are_asked_for_where_the_data_has_no_classes():
    model = made(lambda spec: transformer_classifier.build(spec, depth=2, heads=2, width=8), language())
    tokens = random_tokens(2, LENGTH)
    tokens[1, 5:] = 0  # a window that the text's end cut short
    logits = model(tokens)
    assert logits.shape == (2, LENGTH, V)
    assert_close(logits[1, :5], model(tokens[1:, :5], torch.tensor([5]))[0])
    changed = tokens.clone()
    changed[0, -1] = changed[0, -1] % (V - 1) + 1
    assert not torch.allclose(model(changed)[0, 0], logits[0, 0]), "both sides of a token are seen"


# ---------------------------------------------------------------- padding and causality


@st.composite
def ragged(draw, most: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] with anything after each row's last, and lengths [B]."""
    lengths = draw(st.lists(st.integers(1, most), min_size=1, max_size=4))
    width = draw(st.integers(max(lengths), most))
    rows = [draw(st.lists(st.integers(0, V - 1), min_size=width, max_size=width)) for _ in lengths]
    return torch.tensor(rows), torch.tensor(lengths)


@pytest.mark.parametrize("name", CLASSIFIERS)
@settings(max_examples=25, deadline=None)
@given(ragged())
def test_padding_never_changes_a_class(name, batch):
    tokens, lengths = batch
    model = made(CLASSIFIERS[name], classes())
    together = model(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert_close(together[row], model(tokens[row : row + 1, :length], lengths[row : row + 1])[0], 1e-4)


@pytest.mark.parametrize("name", SEQ2SEQ)
@settings(max_examples=25, deadline=None)
@given(ragged(), st.integers(1, 5))
def test_padding_of_a_source_never_changes_what_is_said(name, batch, width):
    source, lengths = batch
    model = made(SEQ2SEQ[name], pairs())
    tokens = random_tokens(len(source), width)
    together = model(source, lengths, tokens)
    for row, length in enumerate(lengths.tolist()):
        alone = model(source[row : row + 1, :length], lengths[row : row + 1], tokens[row : row + 1])
        assert_close(together[row], alone[0], 1e-4)


@pytest.mark.parametrize("name", LANGUAGE)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_later_token_changes_no_earlier_logit(name, data):
    width = data.draw(st.integers(2, LENGTH))
    place = data.draw(st.integers(1, width - 1))
    model = made(LANGUAGE[name], language())
    tokens = random_tokens(2, width, seed=data.draw(st.integers(0, 99)))
    changed = tokens.clone()
    changed[:, place:] = data.draw(st.integers(0, V - 1))
    torch.testing.assert_close(model(changed)[:, :place], model(tokens)[:, :place], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SEQ2SEQ)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_later_token_of_a_target_changes_no_earlier_logit(name, data):
    width = data.draw(st.integers(2, LENGTH))
    place = data.draw(st.integers(1, width - 1))
    model = made(SEQ2SEQ[name], pairs())
    source, tokens = random_tokens(2, 6), random_tokens(2, width, seed=data.draw(st.integers(0, 99)))
    changed = tokens.clone()
    changed[:, place:] = data.draw(st.integers(0, V - 1))
    lengths = torch.tensor([6, 3])
    before, after = model(source, lengths, tokens), model(source, lengths, changed)
    torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)


def test_a_text_without_tokens_gives_finite_logits():
    for name, builder in CLASSIFIERS.items():
        model = made(builder, classes())
        assert model(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 3])).isfinite().all(), name


# ---------------------------------------------------------------- generation


def without_cache(model: nn.Module, row: list[int], context: int | None) -> Tensor:
    """Logits [V] after all tokens of a row, from a whole pass over the last ones."""
    return model(torch.tensor([row[-context:] if context else row]))[0, -1]


@pytest.mark.parametrize("name", LANGUAGE)
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_generation_with_a_cache_equals_generation_without_and_each_prompt_alone(name, data):
    context = 6
    model = made(LANGUAGE[name], language(context))
    window = context if "gpt" in name else None
    tokens, lengths = data.draw(ragged(most=9))
    rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    logits, state = model.start(tokens, lengths)
    for later in range(10):
        for row, said in enumerate(rows):
            assert_close(logits[row], without_cache(model, said, window), 1e-4)
        following = random_tokens(len(rows), seed=later)
        logits, state = model.step(following, state)
        rows = [[*said, token] for said, token in zip(rows, following.tolist(), strict=True)]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_steps_of_a_sequence_model_equal_its_forward_past_the_expected_length(name):
    model = made(SEQ2SEQ[name], pairs(target_length=3))
    source, lengths, tokens = random_tokens(3, 6), torch.tensor([6, 2, 4]), random_tokens(3, 9, seed=1)
    expected = model(source, lengths, tokens)
    logits, state = model.start(source, lengths, tokens[:, 0])
    assert_close(logits, expected[:, 0])
    for time in range(1, 9):
        logits, state = model.step(tokens[:, time], state)
        assert_close(logits, expected[:, time])


@pytest.mark.parametrize("name", LANGUAGE)
def test_rows_of_a_state_can_be_chosen_and_doubled(name):
    from dlrun.decoding import select

    model = made(LANGUAGE[name], language())
    tokens, lengths = random_tokens(3, 5), torch.tensor([5, 2, 4])
    _, state = model.start(tokens, lengths)
    logits, state = model.step(torch.tensor([4, 5]), select(state, torch.tensor([1, 1])))
    logits, _ = model.step(torch.tensor([7, 7]), state)
    for row, said in enumerate(([4, 7], [5, 7])):
        assert_close(logits[row], without_cache(model, [*tokens[1, :2].tolist(), *said], None), 1e-4)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_rows_of_a_sequence_models_state_can_be_chosen_and_doubled(name):
    from dlrun.decoding import select

    model = made(SEQ2SEQ[name], pairs())
    source, lengths = random_tokens(3, 6), torch.tensor([6, 2, 4])
    _, state = model.start(source, lengths, torch.tensor([1, 2, 3]))
    logits, _ = model.step(torch.tensor([7, 8]), select(state, torch.tensor([2, 2])))
    expected = model(source[[2, 2]], lengths[[2, 2]], torch.tensor([[3, 7], [3, 8]]))
    assert_close(logits, expected[:, -1])


def test_a_cache_holds_16_bit_numbers_under_autocast():
    model = made(LANGUAGE["gpt with Llama's parts"], language())
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model.start(random_tokens(2, 4), torch.tensor([4, 3]))
        logits, _ = model.step(torch.tensor([1, 2]), state)
    assert state.caches[0].keys.dtype == torch.bfloat16
    assert logits.isfinite().all()


# ---------------------------------------------------------------- export

FORMS = {
    "classes": (CLASSIFIERS, classes(), lambda size: (random_tokens(size, 3), torch.tensor([2, 3, 1])[:size])),
    "next tokens": (LANGUAGE, language(), lambda size: (random_tokens(size, 3),)),
    "sequences": (
        SEQ2SEQ,
        pairs(),
        lambda size: (random_tokens(size, 3), torch.tensor([2, 3, 1])[:size], random_tokens(size, 2, seed=1)),
    ),
}
each_model = pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form, (models, _, _) in FORMS.items() for name in models]
)


@each_model
def test_the_exportable_form_equals_the_model_and_shares_its_weights(form, name):
    models, spec, inputs = FORMS[form]
    model = made(models[name], spec)
    before = model(*inputs(3))
    plain = model.exportable() if hasattr(model, "exportable") else model
    assert_close(plain(*inputs(3)), before)
    assert all(mine is theirs for mine, theirs in zip(plain.parameters(), model.parameters(), strict=True))
    assert torch.equal(model(*inputs(3)), before), "the model itself is as it was"
    assert copy.deepcopy(plain).state_dict().keys() == model.state_dict().keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own scan
@each_model
def test_the_exportable_form_is_one_graph_for_any_number_of_examples(form, name):
    models, spec, inputs = FORMS[form]
    model = made(models[name], spec)
    plain = model.exportable() if hasattr(model, "exportable") else model
    sizes = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs(2))
    graph = torch.export.export(plain, inputs(2), dynamic_shapes=sizes).module()
    assert_close(graph(*inputs(3)), model(*inputs(3)))
