"""Tasks on text: losses against torch and by hand, counts, what is said and how it is scored."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from torch import Tensor, nn
from torch.nn import functional

from dlrun import tokens
from dlrun.augment import mask_tokens
from dlrun.contracts import (
    NO_TARGET,
    Batch,
    Dataset,
    DataSpec,
    Outputs,
    Thorough,
    num_tokens,
    processed,
    unit,
    unit_of_rate,
)
from dlrun.data import number_words
from dlrun.decoding import Converses, Generates, Generation, ModelDecoder
from dlrun.errors import DlrunError
from dlrun.metrics.text import Translation
from dlrun.randomness import Draws
from dlrun.tasks import (
    _sequence,
    _texts,
    chat,
    classification,
    language_model,
    masked_language_model,
    multilabel,
    summarization,
    translation,
)
from dlrun.training.batches import placer

TOOLS = SimpleNamespace(seed=0, assets=None)
V = 11


def numbers(kind: str, **settings) -> Dataset:
    return number_words.build(TOOLS, kind=kind, size=60, largest=999, **settings)  # type: ignore[arg-type]


def some(data: Dataset, rows: int = 6) -> Batch:
    return data.splits["train"].gather(torch.arange(rows))


def scores(task, outputs: Outputs) -> dict[str, float]:
    values: dict[str, float] = {}
    for metric in task.metrics():
        metric.update(outputs)
        values |= metric.compute()
    return values


class Next(nn.Module):
    """Logits of the next token that depend on the last one alone."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=generator))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.table[inputs[-1] if inputs[-1].dim() == 2 else inputs[0]]

    def start(self, tokens_BT: Tensor, lengths_B: Tensor):
        return self.table[tokens_BT.gather(1, lengths_B[:, None] - 1)[:, 0]], ()

    def step(self, tokens_B: Tensor, state):
        return self.table[tokens_B], state


# ---------------------------------------------------------------- language modelling


def windows() -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(0, V, (3, 5), generator=generator)
    targets_BT = torch.randint(0, V, (3, 5), generator=generator)
    targets_BT[0, 3:] = NO_TARGET
    targets_BT[2] = NO_TARGET
    return {"id": torch.arange(3), "tokens": tokens_BT, "targets": targets_BT, "bytes": torch.tensor([3, 7, 0])}


LANGUAGE = DataSpec(("tokens",), "targets", {"vocabulary": V, "context": 5}, {"tokens": (5,)})


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_sum_over_targets_and_their_number(smoothing):
    task, model, batch = language_model.build(LANGUAGE, label_smoothing=smoothing), Next(V), windows()
    loss = task.loss(model, batch)
    assert loss.count == 8 == task.count(batch)
    expected = functional.cross_entropy(
        model(batch["tokens"]).reshape(-1, V), batch["targets"].reshape(-1), ignore_index=NO_TARGET,
        label_smoothing=smoothing,
    )  # fmt: skip
    torch.testing.assert_close(loss.sum / loss.count, expected)


def test_the_loss_of_a_batch_is_the_sum_of_the_losses_of_its_parts():
    task, model, batch = language_model.build(LANGUAGE), Next(V), windows()
    parts = [task.loss(model, {name: field[rows] for name, field in batch.items()}) for rows in ([0], [1, 2])]
    whole = task.loss(model, batch)
    torch.testing.assert_close(whole.sum, parts[0].sum + parts[1].sum)
    assert whole.count == parts[0].count + parts[1].count


def test_metrics_of_outputs_are_nats_a_token_and_bits_a_byte():
    task, model, batch = language_model.build(LANGUAGE, label_smoothing=0.3), Next(V), windows()
    plain = language_model.build(LANGUAGE).loss(model, batch)
    values = scores(task, task.outputs(model, batch))
    assert values["loss"] == pytest.approx(plain.sum.item() / 8, rel=1e-6), "evaluation knows no label smoothing"
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    assert values["bits_per_byte"] == pytest.approx(plain.sum.item() / math.log(2) / 10, rel=1e-6)
    right = (model(batch["tokens"]).argmax(2) == batch["targets"]).sum().item()
    assert values["accuracy"] == right / 8
    assert task.goal.metric == "loss" and task.goal.mode == "min" and unit(task) == "tokens"


def test_targets_are_counted_before_they_go_to_a_device():
    placed = placer(torch.device("meta"), channels_last=False)(windows())
    assert placed["targets"].device.type == "meta" and placed["num_targets"].tolist() == [3, 5, 0]
    assert language_model.build(LANGUAGE).count(placed) == 8
    assert "num_targets" not in placer(torch.device("cpu"), channels_last=False)(windows())


def test_a_rate_on_texts_counts_every_token_read_whatever_the_loss_is_of():
    classes = DataSpec(("tokens", "lengths"), "label", {"classes": 2, "vocabulary": V, "length": 4}, {})
    batch = {"id": torch.arange(2), "tokens": torch.ones(2, 4, dtype=torch.int64), "lengths": torch.tensor([4, 3]),
             "label": torch.tensor([0, 1])}  # fmt: skip
    task = classification.build(classes)
    assert (unit(task), unit_of_rate(task), processed(task, batch)) == ("samples", "tokens", 7)
    answered = batch | {"targets": torch.tensor([[NO_TARGET, NO_TARGET, 1, 1], [NO_TARGET, 1, NO_TARGET, NO_TARGET]])}
    assert processed(chat.build(LANGUAGE), answered) == 7
    pair = answered | {"source": batch["tokens"], "source_lengths": torch.tensor([4, 4])}
    assert processed(chat.build(LANGUAGE), pair) == 8 + 3
    placed = placer(torch.device("meta"), channels_last=False)(batch)
    assert placed["lengths"].device.type == "meta" and processed(task, placed) == 7
    features = {"id": torch.arange(2), "features": torch.ones(2, 3), "num_tokens": torch.tensor([4, 3])}
    on_features = classification.build(replace(classes, inputs=("features",)))
    assert (unit_of_rate(on_features), processed(on_features, features)) == ("samples", 2)


def test_a_vocabulary_of_small_letters_is_scored_without_regard_to_capitals():
    for lower in (False, True):
        made = tokens.Tokenizer.train("word", ["A cat"], size=50, lower=lower)
        assert made.lowers == lower
        spec = DataSpec(
            (), "targets", {"target_vocabulary": V, "target_length": 4}, {}, files={tokens.FILE: made.to_json()}
        )
        said = Outputs(torch.arange(1), {"text": tokens.to_bytes(["a cat"]), "reference": tokens.to_bytes(["A cat"])})
        scored = [
            metric for metric in translation.build(spec, goal="bleu").metrics() if isinstance(metric, Translation)
        ]
        scored[0].update(said)
        assert f"|case:{'lc' if lower else 'mixed'}|" in scored[0].tables()["signatures"][0]


@pytest.mark.parametrize("kind", ["language", "chat", "translation", "classification"])
def test_a_split_of_texts_counts_the_tokens_of_its_batches(kind):
    split = numbers(kind).splits["train"]
    counted_B = num_tokens(split.gather(torch.arange(len(split))))
    assert counted_B is not None and split.num_tokens == int(counted_B.sum())  # type: ignore[attr-defined]


def test_the_loss_is_float32_under_autocast():
    task, model, batch = language_model.build(LANGUAGE), nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, V)), windows()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch["tokens"]).dtype == torch.bfloat16
        assert task.loss(model, batch).sum.dtype == torch.float32
        assert task.outputs(model, batch).fields["loss"].dtype == torch.float64


def test_a_model_of_another_vocabulary_is_refused_with_its_shape():
    with pytest.raises(
        DlrunError, match=r"the model gives \[3, 5, 12\]; a task that predicts tokens needs \[3, 5, 11\]"
    ):
        language_model.build(LANGUAGE).loss(Next(12), windows())


def test_rows_say_how_well_each_example_was_predicted():
    task, model, batch = language_model.build(LANGUAGE), Next(V), windows()
    rows = task.rows(task.outputs(model, batch))
    assert [row["tokens"] for row in rows] == [3, 5, 0]
    assert rows[1]["perplexity"] == pytest.approx(math.exp(rows[1]["loss"]))
    assert math.isnan(rows[2]["loss"])


class Recites(nn.Module):
    """Says one text after another prompt, whatever it was, and then ends."""

    def __init__(self, ids: list[int], end: int, vocabulary: int) -> None:
        super().__init__()
        self.ids, self.vocabulary = torch.tensor([*ids, end]), vocabulary

    def start(self, *inputs: Tensor):
        return self._logits(torch.zeros(len(inputs[0]), dtype=torch.int64))

    def step(self, tokens_B: Tensor, state: Tensor):
        return self._logits(state)

    def _logits(self, place_B: Tensor):
        return functional.one_hot(self.ids[place_B], self.vocabulary) * 40.0, place_B + 1


def test_prompts_are_gone_on_with_until_the_end_token():
    data = numbers("language", context=16)
    task = language_model.build(data.spec)
    assert isinstance(task, Generates) and not isinstance(task, Converses) and not isinstance(task, Thorough)
    model = Recites(task.tokenizer.encode("seven = 7"), task.tokenizer.end, data.spec.size("vocabulary"))
    batch = task.prompts(["two", "a prompt of more than sixteen characters"], data.inputs.encode)
    assert batch["lengths"].tolist() == [3, 16]
    said = task.generate(ModelDecoder(model), batch, Generation(50))
    assert said == ["seven = 7"] * 2
    assert task.generate(ModelDecoder(model), batch, Generation(5)) == ["seven"] * 2
    outputs = task.outputs(model, batch)
    assert [row["text"] for row in task.rows(outputs)] == said, "rows without targets are gone on with"


def test_what_follows_a_text_keeps_the_blank_between_them():
    words = tokens.Tokenizer.train("word", ["it was the best of times , it was ."], size=100)
    ids = words.encode("it was the best of times")
    assert _texts.following(words, ids[:2], ids[2:]) == " the best of times"
    pairs = tokens.Tokenizer.train("bpe", ["größe größer"] * 20, size=300)
    ids = pairs.encode("größe größer")
    assert _texts.following(pairs, ids[:1], ids[1:]) == pairs.decode(ids).removeprefix(pairs.decode(ids[:1]))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aé€😀 .,\n", max_size=20), st.sampled_from(["bpe", "char", "word"]))
def test_pieces_of_a_text_are_the_text(text, kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    pieces = list(_texts.pieces(tokenizer, iter(ids)))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


TOKENIZERS = {
    kind: tokens.Tokenizer.train(kind, ["aé€😀 .,\n", "a a. é, 😀"], size=300) for kind in ("bpe", "char", "word")
}


# ---------------------------------------------------------------- masked language modelling


def test_hidden_tokens_are_the_targets_and_nothing_else_is():
    data = numbers("classification")
    batch = some(data, 48)
    hidden = mask_tokens.build(data.spec)(batch, Draws(batch["id"], seed=0, epoch=0))
    is_asked = hidden["targets"] != NO_TARGET
    assert torch.equal(hidden["targets"][is_asked], batch["tokens"][is_asked])
    assert torch.equal(hidden["tokens"][~is_asked], batch["tokens"][~is_asked])
    is_text = torch.arange(batch["tokens"].shape[1]) < batch["lengths"][:, None]
    assert not (is_asked & ~is_text).any() and is_asked.any(1).all()
    share = is_asked.sum() / is_text.sum()
    assert 0.12 < share < 0.20
    mask = _texts.source_tokenizer(data.spec).mask
    assert 0.7 < (hidden["tokens"][is_asked] == mask).float().mean() < 0.9
    assert 0.05 < (hidden["tokens"][is_asked] == batch["tokens"][is_asked]).float().mean() < 0.2


def test_what_is_hidden_depends_on_the_example_and_the_epoch_not_on_the_batch():
    data = numbers("classification")
    hide, batch = mask_tokens.build(data.spec), some(data, 8)
    whole = hide(batch, Draws(batch["id"], seed=0, epoch=0))["targets"]
    part = {name: field[5:] for name, field in batch.items()}
    shorter = {**part, "tokens": part["tokens"][:, : int(part["lengths"].max())]}
    alone = hide(shorter, Draws(shorter["id"], seed=0, epoch=0))["targets"]
    assert torch.equal(whole[5:, : alone.shape[1]], alone)
    assert not torch.equal(whole, hide(batch, Draws(batch["id"], seed=0, epoch=1))["targets"])


class Guess(nn.Module):
    """Logits of every token, whatever is there."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.arange(vocabulary) / 10)

    def forward(self, tokens_BT: Tensor, *others: Tensor) -> Tensor:
        return self.logits.expand(*tokens_BT.shape, -1)


def test_masked_loss_is_over_what_an_augmentation_hid_else_over_what_is_always_hidden():
    data = numbers("classification")
    task, batch = masked_language_model.build(data.spec), some(data)
    model = Guess(data.spec.size("vocabulary"))
    first, again = task.outputs(model, batch), task.outputs(model, batch)
    assert torch.equal(first.fields["loss"], again.fields["loss"])
    assert task.loss(model, batch).count == task.count(batch) == int(first.fields["num_targets"].sum())
    assert task.loss(model, batch).sum.item() == pytest.approx(first.fields["loss"].sum().item(), rel=1e-5)
    hidden = mask_tokens.build(data.spec, probability=0.5)(batch, Draws(batch["id"], seed=3, epoch=0))
    assert task.count(hidden) == int((hidden["targets"] != NO_TARGET).sum()) > task.count(batch)
    expected = functional.cross_entropy(
        model(hidden["tokens"]).flatten(0, 1), hidden["targets"].flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    torch.testing.assert_close(task.loss(model, hidden).sum, expected)
    assert set(scores(task, first)) == {"loss", "perplexity", "accuracy"}


def test_hiding_needs_a_vocabulary():
    with pytest.raises(DlrunError, match=r"hiding tokens needs data with a vocabulary \(tokenizer.json\)"):
        masked_language_model.build(LANGUAGE)
    with pytest.raises(DlrunError, match=r"task\.probability: 0 is not above 0"):
        masked_language_model.build(LANGUAGE, probability=0)


# ---------------------------------------------------------------- translation and summaries


class Knows(nn.Module):
    """Says the target of a source it was shown; of the others, something else."""

    def __init__(self, batch: Batch, vocabulary: int, right: int = 100) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.table = {
            tuple(source[:length]): [token for token in target if token != NO_TARGET]
            for source, length, target in zip(
                batch["source"].tolist(), batch["source_lengths"].tolist(), batch["targets"].tolist(), strict=True
            )
        }
        self.table = dict(list(self.table.items())[:right])

    def forward(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_BT: Tensor) -> Tensor:
        said = torch.zeros_like(tokens_BT)
        for row, target in zip(said, self._targets(source_BS, source_lengths_B), strict=True):
            row[: len(target)] = torch.tensor(target)[: len(row)]
        return functional.one_hot(said, self.vocabulary) * 30.0

    def _targets(self, source_BS: Tensor, source_lengths_B: Tensor) -> list[list[int]]:
        rows = zip(source_BS.tolist(), source_lengths_B.tolist(), strict=True)
        return [self.table.get(tuple(source[:length]), [10, 11, 12, 3]) for source, length in rows]

    def start(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_B: Tensor):
        targets = self._targets(source_BS, source_lengths_B)
        whole = torch.full((len(targets), 100), 3)
        for row, target in zip(whole, targets, strict=True):
            row[: len(target)] = torch.tensor(target)
        return self.step(tokens_B, {"whole": whole, "place": 0})

    def step(self, tokens_B: Tensor, state: dict):
        logits = functional.one_hot(state["whole"][:, state["place"]], self.vocabulary) * 30.0
        return logits, {**state, "place": state["place"] + 1}


@pytest.mark.parametrize("beams", [1, 3])
def test_a_translation_is_said_and_scored_at_the_end(beams):
    data = numbers("translation", reverse=True)
    task, batch = translation.build(data.spec, beams=beams), some(data, 8)
    model = Knows(batch, data.spec.size("target_vocabulary"))
    assert set(scores(task, task.outputs(model, batch))) == {"loss", "perplexity", "accuracy"}
    thorough = task.thorough()
    outputs = thorough.outputs(model, batch)
    values = scores(thorough, outputs)
    assert values["accuracy"] == 1.0 and values["loss"] < 1e-6
    assert values["chrf"] == 100 and "bleu" in values
    rows = thorough.rows(outputs)
    assert [row["text"] for row in rows] == [row["truth"] for row in rows]
    assert rows[0]["text"] in {number_words.spelled(number) for number in range(1000)}
    assert task.goal.metric == "loss" and task.thorough().thorough() is not task
    assert isinstance(task, Thorough) and isinstance(task, Generates)


def test_texts_of_batches_of_different_width_merge():
    data = numbers("translation", reverse=True)
    task = translation.build(data.spec, beams=1).thorough()
    batch = some(data, 8)
    model = Knows(batch, data.spec.size("target_vocabulary"), right=5)
    parts = [data.splits["train"].gather(rows) for rows in (torch.arange(3), torch.arange(3, 8))]
    merged = Outputs.concatenate([task.outputs(model, part) for part in parts])
    assert [row["truth"] for row in task.rows(merged)] == tokens.to_texts(batch["reference"])
    whole = scores(task, task.outputs(model, batch))
    assert scores(task, merged) == pytest.approx(whole)
    assert 10 < whole["chrf"] < 95


def test_a_goal_of_bleu_is_scored_at_each_evaluation():
    data = numbers("translation")
    task = translation.build(data.spec, goal="bleu")
    assert (task.goal.metric, task.goal.mode) == ("bleu", "max") and task.thorough() is task
    batch = some(data, 4)
    assert "bleu" in scores(task, task.outputs(Knows(batch, data.spec.size("target_vocabulary")), batch))


def test_new_rows_without_a_target_are_translated():
    data = numbers("translation", reverse=True)
    task, batch = translation.build(data.spec).thorough(), some(data, 4)
    model = Knows(batch, data.spec.size("target_vocabulary"))
    sources = data.spec.assets["columns"][0]
    asked = _texts.source_tokenizer(data.spec).decode_batch(batch["source"].tolist())
    new = data.inputs.encode([{sources: text} for text in asked])
    assert [set(row) for row in task.rows(task.outputs(model, new))] == [{"id", "text"}] * 4
    prompted = task.prompts(asked, data.inputs.encode)
    assert task.generate(ModelDecoder(model), prompted, task.generation) == tokens.to_texts(batch["reference"])


def test_a_summary_is_scored_beside_the_lead_sentence():
    data = numbers("translation", reverse=True)
    task, batch = summarization.build(data.spec, no_repeat=0), some(data, 4)
    thorough = task.thorough()
    values = scores(thorough, thorough.outputs(Knows(batch, data.spec.size("target_vocabulary")), batch))
    assert values["rouge1"] == values["rougeL"] == 1.0
    assert values["lead_rouge1"] == 0.0, "the source is digits, the reference words"
    assert task.generation.length_penalty == 1.0 and task.goal.metric == "loss"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We propose a model. It works.", "We propose a model."),
        ("Is 3.5 enough? Yes.", "Is 3.5 enough?"),
        ("no full stop", "no full stop"),
        ("  One!  Two.", "One!"),
        ("", ""),
    ],
)
def test_the_lead_is_the_first_sentence(text, expected):
    assert _sequence.lead(text) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, r"task\.beams: 0 is not at least 1"),
        ({"max_tokens": 0}, r"task\.max_tokens: 0 is not at least 1"),
        ({"length_penalty": 99.0}, r"task\.length_penalty: 99.0"),
        ({"label_smoothing": 1.0}, r"task\.label_smoothing: 1.0 is not in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    spec = numbers("translation").spec
    for task in (translation, summarization):
        with pytest.raises(DlrunError, match=message):
            task.build(spec, **settings)


def test_tasks_on_data_they_do_not_fit_say_what_the_data_has():
    plain = DataSpec(("image",), "label", {"classes": 3}, {"image": (4,)})
    for task in (language_model, chat, translation, summarization, masked_language_model, multilabel):
        with pytest.raises(DlrunError, match=r"needs data with '.*'; this data set has classes=3"):
            task.build(plain)
    with pytest.raises(DlrunError, match="needs data with 'target_vocabulary'; this data set has context=5"):
        translation.build(LANGUAGE)
    with pytest.raises(DlrunError, match="needs data with 'classes'"):
        classification.build(LANGUAGE)


# ---------------------------------------------------------------- chat


def talk(*contents: str, system: str = "") -> list[dict]:
    start = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return start + [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def test_only_answers_are_learned():
    data = numbers("chat")
    task, batch = chat.build(data.spec), some(data, 1)
    targets = [token for token in batch["targets"][0].tolist() if token != NO_TARGET]
    assert task.tokenizer.decode(targets).isdigit() and targets[-1] == task.tokenizer.end
    assert task.count(batch) == len(targets)
    assert isinstance(task, Converses) and isinstance(task, Generates)


def test_a_reply_comes_in_pieces_and_ends_before_the_end_token():
    data = numbers("chat")
    task = chat.build(data.spec)
    model = Recites(task.tokenizer.encode("one hundred"), task.tokenizer.end, data.spec.size("vocabulary"))
    batch = data.inputs.encode([{"messages": talk("Write one in digits.")}])
    for generation in (Generation(50), Generation(50, temperature=0.5), Generation(50, beams=2)):
        pieces = list(task.reply(ModelDecoder(model), batch, generation))
        assert "".join(pieces) == "one hundred"
        assert len(pieces) > 5 or generation.beams > 1


def test_the_oldest_turns_give_way_until_an_answer_has_room():
    data = numbers("chat", context=60)
    task = chat.build(data.spec)
    # A question of ten characters is a marker, ten tokens and an end; one beginning and one marker come on top.
    messages = talk("abcdefghij", "x", "abcdefghij", "x", "abcdefghij", system="be")
    whole = 1 + 1 + (1 + 2 + 1) + 3 * 12 + 2 * 3
    assert task._num_tokens(messages) == whole
    prompt = data.inputs.encode([{"messages": messages}])
    assert prompt["lengths"].tolist() == [whole]
    assert task.fitting(messages, Generation(60 - whole)) == messages
    assert task.fitting(messages, Generation(60 - whole + 1)) == [messages[0], *messages[3:]]
    assert task.fitting(messages, Generation(1000)) == [messages[0], messages[5]], "half is kept free, at most"
    long = talk("a" * 80, "x", "b" * 80)
    assert task.fitting(long, Generation(10)) == long[2:]


# ---------------------------------------------------------------- several labels

LABELS = DataSpec(("features",), "labels", {"labels": 3, "features": 4}, {"features": (4,)}, ("red", "green", "blue"))


def labelled(size: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(4)
    labels = (torch.rand(size, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.1])).float()
    return {"id": torch.arange(size), "features": torch.randn(size, 4, generator=generator), "labels": labels}


def test_the_loss_of_several_labels_is_binary_cross_entropy():
    task, model, batch = multilabel.build(LABELS), nn.Linear(4, 3), labelled()
    loss = task.loss(model, batch)
    expected = functional.binary_cross_entropy_with_logits(model(batch["features"]), batch["labels"])
    torch.testing.assert_close(loss.sum / loss.count, expected)
    assert scores(task, task.outputs(model, batch))["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert loss.count == 40


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_scores_of_several_labels_are_those_of_scikit_learn(threshold):
    task, batch = multilabel.build(LABELS, threshold=threshold), labelled()
    with torch.no_grad():
        outputs = task.outputs(nn.Linear(4, 3), batch)
    metrics = task.metrics()
    values: dict[str, float] = {}
    for metric in metrics:
        for rows in (slice(0, 7), slice(7, 40)):
            metric.update(Outputs(outputs.ids[rows], {name: field[rows] for name, field in outputs.fields.items()}))
        values |= metric.compute()
    probabilities, truth = outputs.fields["logits"].sigmoid().numpy(), batch["labels"].numpy()
    said = probabilities >= threshold
    assert values["micro_f1"] == pytest.approx(sklearn.f1_score(truth, said, average="micro"))
    assert values["macro_f1"] == pytest.approx(sklearn.f1_score(truth, said, average="macro", zero_division=0))
    assert values["exact_match"] == pytest.approx(sklearn.accuracy_score(truth, said))
    assert values["mean_average_precision"] == pytest.approx(sklearn.average_precision_score(truth, probabilities))
    assert task.goal.metric in values


def test_average_precision_counts_equal_scores_together():
    from dlrun.metrics.multilabel import average_precision

    scores_N = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.1]).double()
    labels_N = torch.tensor([0, 1, 0, 1, 1]).double()
    expected = sklearn.average_precision_score(labels_N.numpy(), scores_N.numpy())
    assert average_precision(scores_N, labels_N) == pytest.approx(expected)


def test_rows_of_several_labels_name_those_above_the_threshold():
    task = multilabel.build(LABELS, top_k=2)
    fields = {"logits": torch.tensor([[2.0, -1.0, 0.5], [-3.0, -2.0, -1.0]]), "labels": torch.eye(3)[:2] > 0}
    rows = task.rows(Outputs(torch.tensor([5, 6]), fields))
    assert rows[0]["labels"] == ["red", "blue"] and rows[0]["truth"] == ["red"] and rows[1]["labels"] == []
    assert rows[0]["probabilities"] == pytest.approx({"red": 0.8808, "blue": 0.6225}, abs=1e-4)


def test_one_label_an_example_is_refused_by_the_task_of_several():
    batch = labelled(4) | {"labels": torch.tensor([0, 1, 2, 0])}
    with pytest.raises(
        DlrunError, match=r"the data gives \[4\] for 4 examples; several labels an example need \[4, 3\]"
    ):
        multilabel.build(LABELS).loss(nn.Linear(4, 3), batch)
    with pytest.raises(DlrunError, match=r"task\.threshold: 1.0 is not between 0 and 1"):
        multilabel.build(LABELS, threshold=1.0)
