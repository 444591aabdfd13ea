"""Models of tables: against their formulas written out, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from dlrun.contracts import DataSpec, Outputs
from dlrun.errors import DlrunError
from dlrun.metrics.auroc import Auroc, area_under_roc
from dlrun.metrics.classification import PerClass
from dlrun.models import ft_transformer, tabular_linear, tabular_mlp, tabular_resnet, wide_and_deep

MODELS = {
    "tabular_linear": tabular_linear.build,
    "tabular_mlp": tabular_mlp.build,
    "tabular_resnet": tabular_resnet.build,
    "ft_transformer": lambda spec: ft_transformer.build(spec, width=16, heads=4, depth=2),
    "wide_and_deep": lambda spec: wide_and_deep.build(spec, crosses=[["city", "job"]], buckets=7),
}


def spec(numbers: int = 2, cardinalities: tuple[int, ...] = (4, 3), **assets) -> DataSpec:
    sizes = {"numbers": numbers, "categories": len(cardinalities), "targets" if assets else "classes": 2}
    names = ["city", "job"][: len(cardinalities)]
    assets = {"cardinalities": list(cardinalities), "category_columns": names} | assets
    shapes = {"numbers": (numbers,), "categories": (len(cardinalities),)}
    return DataSpec(
        ("numbers", "categories"), "target" if "target_std" in assets else "label", sizes, shapes, (), assets
    )


def rows(numbers: int = 2, cardinalities: tuple[int, ...] = (4, 3), size: int = 5):
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, count, (size, 1), generator=generator) for count in cardinalities]
    return torch.randn(size, numbers, generator=generator), torch.cat([torch.zeros(size, 0).long(), *codes], 1)


@pytest.mark.parametrize(("numbers", "cardinalities"), [(2, (4, 3)), (0, (4, 3)), (3, ())])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_any_mix_of_columns_and_trains_all_its_parameters(name, numbers, cardinalities):
    if name == "wide_and_deep" and not cardinalities:
        model = wide_and_deep.build(spec(numbers, cardinalities))
    else:
        model = MODELS[name](spec(numbers, cardinalities))
    logits = model(*rows(numbers, cardinalities))
    assert logits.shape == (5, 2)
    (logits[:, 0].exp().sum() + logits.square().sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_row_says_the_same_alone_as_in_a_batch(name):
    model = MODELS[name](spec()).eval()
    numbers, categories = rows()
    torch.testing.assert_close(model(numbers[2:3], categories[2:3]), model(numbers, categories)[2:3])


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_predicted_in_their_own_units(name):
    plain = MODELS[name](spec(target_std=[1.0, 1.0], target_mean=[0.0, 0.0])).eval()
    scaled = MODELS[name](spec(target_std=[10.0, 2.0], target_mean=[100.0, -1.0])).eval()
    scaled.load_state_dict(plain.state_dict())
    said = plain(*rows())
    torch.testing.assert_close(scaled(*rows()), said * torch.tensor([10.0, 2.0]) + torch.tensor([100.0, -1.0]))


def test_the_linear_model_is_that_of_indicators():
    model = tabular_linear.build(spec())
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    numbers, categories = rows()
    indicators = torch.cat([nn.functional.one_hot(categories[:, 0], 4), nn.functional.one_hot(categories[:, 1], 3)], 1)
    expected = numbers @ model.weight.T + model.bias + indicators.float() @ model.categories.embedding.weight
    torch.testing.assert_close(model(numbers, categories), expected)


def test_an_unknown_category_starts_as_nothing_at_all():
    model = tabular_mlp.build(spec(numbers=0, cardinalities=(4, 3)))
    assert model.row(torch.zeros(1, 0), torch.tensor([[0, 0]])).abs().sum() == 0
    assert model.row(torch.zeros(1, 0), torch.tensor([[2, 1]])).abs().sum() > 0


def test_the_mlp_equals_its_layers_written_out():
    model = tabular_mlp.build(spec(), depth=1, width=6, embedding_width=3, dropout=0.0)
    numbers, categories = rows()
    embedded = model.row.categories.embedding.weight[categories + torch.tensor([0, 4])].flatten(1)
    linear = model.hidden[0]
    expected = model.head.linear(linear(torch.cat([numbers, embedded], 1)).relu())
    torch.testing.assert_close(model(numbers, categories), expected)


def test_a_resnet_of_blocks_that_add_nothing_is_its_first_layer_and_its_head():
    model = tabular_resnet.build(spec(), width=8).eval()
    for block in model.blocks:
        nn.init.zeros_(block.down.weight)
        nn.init.zeros_(block.down.bias)
    x = model.first(model.row(*rows()))
    torch.testing.assert_close(model(*rows()), model.head(model.norm(x).relu()))


def test_the_tokens_of_the_ft_transformer_are_those_of_the_paper():
    tokenizer = ft_transformer.build(spec(), width=8, heads=2).tokenizer
    numbers, categories = rows()
    tokens = tokenizer(numbers, categories)
    assert tokens.shape == (5, 5, 8)
    torch.testing.assert_close(tokens[:, 0], tokenizer.row.expand(5, -1))
    torch.testing.assert_close(tokens[3, 2], numbers[3, 1] * tokenizer.numbers[1] + tokenizer.bias[1])
    embedded = tokenizer.categories.embedding.weight[4 + categories[3, 1]]
    torch.testing.assert_close(tokens[3, 4], embedded + tokenizer.bias[3])


def test_the_last_block_of_the_ft_transformer_may_look_at_the_first_token_only():
    block = ft_transformer.Block(8, 2, 10, (0.0, 0.0, 0.0), is_first=False).eval()
    x = torch.randn(3, 6, 8)
    torch.testing.assert_close(block(x, only_first=True), block(x)[:, :1])


def test_a_block_of_the_ft_transformer_attends_as_torch_does():
    block = ft_transformer.Block(8, 2, 10, (0.0, 0.0, 0.0), is_first=True).eval()
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([block.query.weight, block.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([block.query.bias, block.key_value.bias]))
        attention.out_proj.load_state_dict(block.out.state_dict())
    x = torch.randn(3, 6, 8)
    middle = x + attention(x, x, x)[0]
    normed = block.feed_forward_norm(middle)
    after = middle + block.down(block.gate(normed).relu() * block.up(normed))
    torch.testing.assert_close(block(x), after, rtol=1e-4, atol=1e-5)


def test_a_cross_has_a_weight_for_each_pair_of_values_where_there_is_room():
    crosses = wide_and_deep.Crosses([(0, 1)], 1000, 2)
    pairs = [[left, right] for left in range(4) for right in range(3)]
    mixed = torch.tensor(pairs)
    places = (mixed[:, 0] * wide_and_deep._PRIME + mixed[:, 1]) % crosses.buckets
    assert len(places.unique()) == 12
    nn.init.normal_(crosses.embedding.weight)
    assert len(crosses(mixed).unique(dim=0)) == 12


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crosses": [["city", "jobs"]]}, "model.crosses: 'jobs' is no category of the data"),
        ({"crosses": ["city"]}, "model.crosses: 'city' is no pair of categories"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"embedding_width": 0}, "model.embedding_width: 0 is not at least 1"),
    ],
)
def test_what_a_wide_and_deep_model_cannot_be_is_refused(settings, says):
    with pytest.raises(DlrunError) as raised:
        wide_and_deep.build(spec(), **settings)
    assert raised.value.message.startswith(says)


def test_a_model_of_tables_refuses_pictures():
    with pytest.raises(DlrunError, match="this task or model needs data with 'categories'"):
        tabular_mlp.build(DataSpec(("image",), "label", {"classes": 2, "channels": 1}, {"image": (1, 8, 8)}))


# ---------------------------------------------------------------- metrics


def test_the_area_under_the_curve_is_that_of_scikit_learn_with_ties_and_more_classes():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randint(0, 8, (60,), generator=generator), torch.randint(0, 2, (60,), generator=generator)
    assert area_under_roc(scores.double(), labels == 1) == pytest.approx(roc_auc_score(labels, scores))
    log_probabilities = torch.randn(60, 3, generator=generator).log_softmax(1)
    labels = torch.randint(0, 3, (60,), generator=generator)
    metric = Auroc(3)
    for rows_ in torch.arange(60).split(25):
        fields = {"log_probabilities": log_probabilities[rows_], "label": labels[rows_]}
        metric.update(Outputs(rows_, fields))
    expected = roc_auc_score(labels, log_probabilities.double().softmax(1), multi_class="ovr")
    assert metric.compute()["auroc"] == pytest.approx(expected, rel=1e-6)


def test_f1_of_two_classes_is_that_of_the_second():
    metric = PerClass(2)
    said = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]).log()
    metric.update(Outputs(torch.arange(4), {"log_probabilities": said, "label": torch.tensor([0, 1, 0, 1])}))
    assert metric.compute()["f1"] == pytest.approx(0.5)
