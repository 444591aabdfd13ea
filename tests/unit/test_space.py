"""The space of a sweep: Hydra's grammar to dimensions, and what cannot be searched."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrun.config import space
from dlrun.config.compose import compose, split_sweep
from dlrun.config.space import Dimension
from dlrun.errors import DlrunError


def dimension_of(text: str) -> Dimension:
    fixed, [dimension] = split_sweep([text])
    assert fixed == []
    return dimension


def test_every_form_of_several_values_is_a_dimension():
    assert dimension_of("model=mlp,cnn") == Dimension("model", "choice", ("mlp", "cnn"))
    assert dimension_of("data.batch_size=choice(64,128)") == Dimension("data.batch_size", "choice", ("64", "128"))
    assert dimension_of("a.b=range(1,5)") == Dimension("a.b", "int", low=1, high=4, step=1)
    assert dimension_of("a.b=range(2,9,3)") == Dimension("a.b", "int", low=2, high=8, step=3)
    assert dimension_of("a.b=range(0,1,0.5)") == Dimension("a.b", "choice", ("0.0", "0.5"))
    assert dimension_of("a.b=interval(0.1,1)") == Dimension("a.b", "float", low=0.1, high=1.0)
    assert dimension_of("a.b=int(interval(1,8))") == Dimension("a.b", "int", low=1, high=8)
    logarithmic = Dimension("optimizer.lr", "float", low=1e-4, high=0.1, log=True)
    assert dimension_of("optimizer.lr=tag(log, interval(1e-4,1e-1))") == logarithmic
    assert {"resnet20", "resnet56"} <= set(dimension_of("model=glob(resnet*)").choices)


def test_whole_numbers_are_drawn_on_a_log_scale_where_it_says_so():
    assert dimension_of("a.b=tag(log, range(16,257))") == Dimension("a.b", "int", low=16, high=256, step=1, log=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.b=tag(lgo, interval(1,9))", "unknown tag 'lgo'"),
        ("a.b=tag(log, range(1,9,2))", "only steps of 1 are drawn on a log scale"),
        ("a.b=tag(log, choice(1,9))", "single values have no scale"),
    ],
)
def test_a_tag_that_would_change_nothing_is_refused(text, said):
    with pytest.raises(DlrunError, match=said):
        split_sweep([text])


def test_one_value_stays_an_override():
    assert split_sweep(["seed=1", "model=mlp,cnn"])[0] == ["seed=1"]


def test_values_that_hold_lists_and_blanks_come_back_as_overrides():
    dimension = dimension_of("model.widths=[64,64],[128]")
    assert dimension.choices == ("[64,64]", "[128]")
    assert compose(["model=mlp", dimension.override("[64,64]")]).values["model"]["widths"] == [64, 64]


def test_the_yaml_form_gives_the_same_dimensions_and_its_conditions():
    given_in_yaml = {
        "optimizer.lr": "interval(0.1,0.2)",
        "data": {"batch_size": "choice(32,64)"},
        "when": {"model": {"mlp": {"model.dropout": "choice(0.1,0.2)"}}},
    }
    _, found = split_sweep([], given_in_yaml)
    assert [dimension.key for dimension in found] == ["optimizer.lr", "data.batch_size", "model.dropout"]
    assert found[2].when == ("model", "mlp")


def test_the_command_line_comes_before_the_yaml():
    _, found = split_sweep(["optimizer.lr=0.1,0.2"], {"optimizer.lr": "interval(1,2)"})
    assert [dimension.choices for dimension in found] == [("0.1", "0.2")]
    fixed, found = split_sweep(["optimizer.lr=0.1"], {"optimizer.lr": "interval(1,2)"})
    assert (fixed, found) == (["optimizer.lr=0.1"], [])


def test_one_setting_may_have_a_space_under_each_of_several_choices():
    given_in_yaml = {
        "model": "choice(mlp,cnn)",
        "when": {"model": {"mlp": {"a.b": "choice(1,2)"}, "cnn": {"a.b": "interval(3,4)"}}},
    }
    _, found = split_sweep([], given_in_yaml)
    space.check(found)
    values = {found[0].name: "cnn", found[2].name: 3.5}
    assert space.overrides(found, values) == ["model=cnn", "a.b=3.5"]
    assert space.settings(values) == {"model": "cnn", "a.b": 3.5}


@pytest.mark.parametrize(
    "further",
    [{"a.b": "choice(3,4)"}, {"when": {"model": {"mlp": {"a.b": "1,2"}}, "optimizer": {"sgd": {"a.b": "1,2"}}}}],
)
def test_two_spaces_of_one_setting_that_one_trial_may_draw_are_refused(further):
    _, found = split_sweep([], {"when": {"model": {"mlp": {"a.b": "choice(1,2)"}}}} | further)
    with pytest.raises(DlrunError, match=r"a\.b: has spaces that one trial may draw both of"):
        space.check(found)


@pytest.mark.parametrize("given", ["x", {"model": "resnet20"}, {"model": {"resnet20": "choice(1,2)"}}])
def test_a_condition_that_names_no_settings_is_refused_with_the_form_it_has(given):
    with pytest.raises(DlrunError, match=r"search\.space\.when") as raised:
        split_sweep([], {"when": given})
    assert raised.value.hint == "{model: {resnet20: {model.width: 'choice(16,32)'}}}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer.lr=interval(1,0.1)", "optimizer.lr: interval(1,0.1) does not begin below its end"),
        ("optimizer.lr=tag(log, interval(0,1))", "cannot be drawn on a log scale"),
        ("tracking.uri=a,b", "tracking.uri: cannot be searched"),
        ("search.trials=1,2", "search.trials: cannot be searched"),
        ("name=a,b", "name: cannot be searched"),
        ("optimizer.lr=0.1,0.1", "the same value twice"),
        ("optimizer.lr=interval(0.1,inf)", "interval(0.1,inf) has no end"),
        ("hardware.launcher=local,slurm", "hardware.launcher: cannot be searched"),
        ("data.batch_size=tag(log, range(0,9))", "cannot be drawn on a log scale"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_name(text, said):
    _, found = split_sweep([text])
    with pytest.raises(DlrunError, match=said.replace("(", r"\(").replace(")", r"\)")):
        space.check(found)


def test_a_choice_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(DlrunError, match="model: no choice 'resnet21'") as raised:
        split_sweep(["model=mlp,resnet21"])
    assert raised.value.hint.startswith("did you mean resnet")


def test_nothing_to_search_is_refused():
    with pytest.raises(DlrunError, match="there is nothing to search"):
        space.check([])


def test_train_refuses_settings_of_the_search():
    with pytest.raises(DlrunError, match=r"search is not for this command"):
        compose(["search.trials=3"])


@settings(deadline=None)
@given(
    st.floats(1e-6, 1e3),
    st.floats(1.001, 1e3),
    st.booleans(),
)
def test_an_interval_reads_back_as_it_was_written(low, factor, log):
    high = low * factor
    inner = f"interval({low!r},{high!r})"
    found = dimension_of(f"optimizer.lr={f'tag(log, {inner})' if log else inner}")
    assert (found.low, found.high, found.log) == (low, high, log)
    assert Dimension.from_json(found.to_json()) == found


def test_group_choices_come_before_the_settings_of_their_options():
    dimensions = [Dimension("model.width", "int", low=1, high=3), Dimension("model", "choice", ("resnet20",))]
    assert space.overrides(dimensions, {"model.width": 2, "model": "resnet20"}) == ["model=resnet20", "model.width=2"]
