"""Every file of every room, and every file of conf/, against the contracts they stand on."""

import importlib
import inspect
import re
import types
import typing
from dataclasses import fields
from typing import Literal

import pytest
import yaml

from dlrun.commands import _catalogue as catalogue
from dlrun.config import conf_folders, convert, schema
from dlrun.config.compose import compose
from dlrun.registry import ROOMS, Component, Registry, Setting, meanings

FACTS = {
    "data": ("tools",),
    "model": ("spec",),
    "task": ("spec",),
    "optimizer": ("groups",),
    "schedule": ("total_steps",),
    "transfer": ("model", "spec", "tools", "source"),
    "augment": ("spec",),
}
# What a choice cannot know, and a user has to say.
NEEDED = {
    "files": ["data.path=somewhere"],
    "hub": ["data.path=ORG/NAME"],
    "torchvision": ["model.architecture=resnet18"],
    "torch": ["optimizer.algorithm=SGD"],
    "finetune": ["transfer.from=run:latest"],
    "feature_extraction": ["transfer.from=run:latest"],
}

REGISTRY = Registry()
CONF = conf_folders.packaged_conf()
COMPONENTS = [(kind, name) for kind in ROOMS for name in REGISTRY.listing(kind)]
CHOICES = [(group, name) for group in schema.GROUPS for name in conf_folders.choices(group)]
COMMON = typing.get_type_hints(schema.RunConfig)


def read(kind: str, name: str) -> Component:
    return REGISTRY.component(kind, name)


def each(first: str, second: str, pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize((first, second), pairs, ids=["/".join(pair) for pair in pairs])


components = each("kind", "name", COMPONENTS)


def test_every_room_has_its_contract():
    assert FACTS.keys() == ROOMS.keys()
    assert {kind for kind, _ in COMPONENTS} == set(ROOMS)


@components
def test_a_component_takes_the_facts_of_its_room(kind, name):
    assert read(kind, name).facts == FACTS[kind]


@components
def test_a_component_says_what_it_is_and_what_each_setting_means(kind, name):
    component = read(kind, name)
    assert component.summary.endswith("."), "the first line of the file is shown by dlrun list"
    assert set(component.meanings) == set(component.settings)
    assert [setting for setting, text in component.meanings.items() if len(text) < 4] == []


@components
def test_no_setting_hides_a_common_one(kind, name):
    if kind in schema.GROUPS:
        assert set(read(kind, name).settings) & common_settings(catalogue.group_class(kind)) == set()


@components
def test_a_default_is_a_literal_of_its_own_type(kind, name):
    problems = convert.Problems()
    for setting in read(kind, name).settings.values():
        if not setting.required:
            convert._to_setting(setting, setting.default, setting.name, problems)
    assert problems.found == []


@components
def test_the_signature_read_is_the_signature_imported(kind, name):
    module = importlib.import_module(f"dlrun.{ROOMS[kind]}.{name}")
    signature = inspect.signature(module.build, eval_str=True)
    positional = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert len(positional) + len(keyword) == len(signature.parameters), "build takes no *args or **kwargs"
    component = read(kind, name)
    assert tuple(p.name for p in positional) == component.facts
    assert {key: imported(p) for key, p in keyword.items()} == component.settings
    if kind == "data":
        assert list(inspect.signature(module.inputs).parameters) == ["spec"]


def imported(parameter: inspect.Parameter) -> Setting:
    """A setting as `inspect` sees it."""
    hint = parameter.annotation
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    choices = tuple(
        value for option in options if typing.get_origin(option) is Literal for value in typing.get_args(option)
    )
    kinds = [typing.get_origin(option) or option for option in options if typing.get_origin(option) is not Literal]
    names = tuple("None" if kind is type(None) else kind.__name__ for kind in kinds)
    required = parameter.default is parameter.empty
    return Setting(parameter.name, names, choices, None if required else parameter.default, required)


# ---------------------------------------------------------------- the schema


def common_settings(group: type) -> set[str]:
    """What a user may set of a dataclass of the schema; `options` holds the component's own."""
    return {item.metadata.get("key", item.name) for item in fields(group)} - {"options"}


@pytest.mark.parametrize("name", [name for name in COMMON if name in schema.GROUPS])
def test_every_common_setting_says_what_it_means(name):
    assert set(meanings(COMMON[name].__doc__)) == common_settings(COMMON[name])


def test_every_plain_setting_of_a_run_says_what_it_means():
    assert set(meanings(schema.RunConfig.__doc__)) == set(COMMON) - set(schema.GROUPS) == {"seed", "name"}


# ---------------------------------------------------------------- conf


def test_every_group_has_a_folder_and_every_folder_is_a_group():
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == set(schema.GROUPS)


@each("group", "choice", CHOICES)
def test_a_choice_composes_validates_and_begins_with_a_comment(group, choice, monkeypatch):
    monkeypatch.setenv("DLRUN_TEST_DATA", "/data")
    path = CONF / group / f"{choice}.yaml"
    lines = path.read_text().splitlines()
    assert re.match(r"# \w", lines[1] if group == "experiment" else lines[0])
    config = convert.to_config(compose([f"{group}={choice}", *NEEDED.get(choice, [])]).values, REGISTRY)
    assert convert.to_config(convert.to_plain(config), REGISTRY) == config


@each("group", "choice", [pair for pair in CHOICES if pair[0] in schema.COMPONENT_GROUPS])
def test_a_choice_repeats_no_default(group, choice):
    values = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
    if values["name"] == "none":
        assert values == {"name": "none"}
        return
    settings = read(group, values["name"]).settings
    assert [key for key, value in values.items() if key in settings and not settings[key].required
            and settings[key].default == value] == []  # fmt: skip


@pytest.mark.parametrize("name", conf_folders.choices("experiment"))
def test_an_experiment_states_command_hardware_time_and_score(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    header = [line for line in lines[2:] if line.startswith("#")]
    stated = {found[1]: found[2] for line in header if (found := re.match(r"# (\w+): +(.+)", line))}
    assert {"command", "hardware", "time", "score"} <= set(stated)
    assert f"experiment={name}" in stated["command"]


def test_every_line_of_run_yaml_has_a_comment():
    text = (CONF / "run.yaml").read_text()
    assert set(re.findall(r"^  - (\w+): .*$", text, re.MULTILINE)) == set(schema.GROUPS)
    assert [line for line in text.splitlines() if re.match(r"  - \w+:", line) and " # " not in line] == []
