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
    "search": ("space", "goals", "seed"),
    "ensemble": ("spec",),
    "compression": ("spec",),
}
# What a choice cannot know, and a user has to say.
NEEDED = {
    "files": ["data.path=somewhere"],
    "hub": ["data.path=ORG/NAME"],
    "torchvision": ["model.architecture=resnet18"],
    "pretrained": ["model.path=somewhere"],
    "lora": ["transfer.from=run:latest"],
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
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*schema.GROUPS, *schema.VERBS}


@each("group", "choice", [(group, name) for group in schema.VERBS for name in conf_folders.choices(group)])
def test_a_choice_of_a_verb_composes_beside_the_run(group, choice):
    assert (CONF / group / f"{choice}.yaml").read_text().startswith("# ")
    composed = compose([f"{group}={choice}"], verb=group)
    assert group not in composed.values
    if group in schema.STACKS:
        assert [step.name for step in convert.to_stack(group, composed.verb, REGISTRY).values()] == [choice]
    else:
        assert convert.to_verb(group, composed.verb, REGISTRY).name == choice


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


# ---------------------------------------------------------------- models of a class a pixel


def choices_of(group: str, *components: str) -> list[str]:
    """The choices of a group that name one of these components."""
    stored = {name: yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) for name in conf_folders.choices(group)}
    return [name for name, values in stored.items() if values["name"] in components]


@pytest.mark.parametrize("choice", choices_of("model", "unet", "torchvision_segmentation"))
def test_a_segmentation_model_takes_a_step(choice):
    import torch

    from dlrun import build
    from dlrun.contracts import DataSpec

    sizes = {"pixel_classes": 3, "channels": 3, "height": 32, "width": 48, "mask_height": 64, "mask_width": 96}
    spec = DataSpec(("image",), "mask", sizes, {"image": (3, 32, 48)}, ("sky", "road", "car"))
    config = convert.to_config(compose([f"model={choice}", "task=segmentation"]).values, REGISTRY)
    task, model = build.task(config.task, REGISTRY, spec), build.model(config.model, REGISTRY, spec, seed=0)
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (2, 64, 96), generator=generator, dtype=torch.uint8)
    batch = {"id": torch.arange(2), "image": torch.randn(2, 3, 32, 48, generator=generator), "mask": masks}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loss = task.loss(model, batch)
    loss.sum.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert loss.sum.isfinite() and still == []
    assert set(task.outputs(model.eval(), batch).fields) == {"log_probabilities", "mask"}


# ---------------------------------------------------------------- models of boxes

DETECTORS = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("ssd300", "faster_rcnn") else name
    for name in choices_of("model", "center", "torchvision_detection")
]


@pytest.mark.parametrize("choice", DETECTORS)
def test_a_detection_model_takes_a_step_and_exports_what_comes_before_its_detections(choice):
    import torch
    from torch.utils import _pytree as trees

    from dlrun import build
    from dlrun.contracts import DataSpec, Exportable

    pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")
    height, width = (300, 300) if choice == "ssd300" else (64, 96)
    sizes = {"box_classes": 2, "boxes": 3, "channels": 3, "height": height, "width": width}
    spec = DataSpec(("image",), "boxes", sizes, {"image": (3, height, width)}, ("cat", "dog"))
    config = convert.to_config(compose([f"model={choice}", "task=detection"]).values, REGISTRY)
    task, model = build.task(config.task, REGISTRY, spec), build.model(config.model, REGISTRY, spec, seed=0)
    batch = {
        "id": torch.arange(2),
        "image": torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)),
        "boxes": torch.tensor([[[4.0, 6, 40, 50], [20, 20, 60, 36], [0, 0, 90, 60]], [[0.0, 0, 0, 0]] * 3]),
        "box_labels": torch.tensor([[0, 1, 1], [-1, -1, -1]]),
        "box_crowd": torch.tensor([[False, False, True], [False] * 3]),
    }
    loss = task.loss(model, batch)
    loss.sum.backward()
    # SSD looks at the hardest of its boxes only: a level without any has gradients, of zero.
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert loss.sum.isfinite() and loss.count == 2 and task.loss(model, batch).sum.isfinite()

    computed: list[torch.Tensor] = []
    with torch.no_grad():
        for module in model.eval().modules():
            module.register_forward_hook(lambda _, __, said: computed.extend(trees.tree_leaves(said)))
        outputs = task.outputs(model, batch)
        known = [value for value in computed if isinstance(value, torch.Tensor)]
        known += [half for whole in known if whole.dim() > 1 for half in whole.chunk(2, 1)]
        assert isinstance(model, Exportable)
        exported = trees.tree_leaves(model.exportable().eval()(batch["image"]))
    assert len(exported) >= 2
    for tensor in exported:
        assert any(torch.equal(tensor, other) for other in known), "the model itself never computes this"
    assert set(outputs.fields) == {"boxes", "scores", "labels", "true_boxes", "true_labels", "true_crowd"}


# ---------------------------------------------------------------- models of text

TEXT_MODELS = {
    "classes": choices_of("model", "bag", "textcnn", "rnn", "transformer_classifier"),
    "hidden tokens": choices_of("model", "transformer_classifier"),
    "next tokens": choices_of("model", "gpt", "rnn_language"),
    "sequences": choices_of("model", "seq2seq_rnn", "transformer"),
}


@each("form", "choice", [(form, choice) for form, choices in TEXT_MODELS.items() for choice in choices])
def test_a_text_model_takes_a_step_and_says_the_same_a_token_at_a_time(form, choice):
    import torch
    from torch.nn.functional import cross_entropy

    from dlrun import build
    from dlrun.contracts import DataSpec

    tokens, lengths = torch.randint(1, 30, (2, 6), generator=torch.Generator().manual_seed(0)), torch.tensor([6, 4])
    windows = DataSpec(("tokens",), "targets", {"vocabulary": 30, "context": 8}, {"tokens": (8,)})
    sizes = {"vocabulary": 30, "target_vocabulary": 31, "length": 8, "target_length": 8}
    spec, inputs, shape = {
        "classes": (
            DataSpec(("tokens", "lengths"), "label", {"vocabulary": 30, "length": 8, "classes": 3}, {}),
            (tokens, lengths),
            (2, 3),
        ),
        "hidden tokens": (windows, (tokens,), (2, 6, 30)),
        "next tokens": (windows, (tokens,), (2, 6, 30)),
        "sequences": (
            DataSpec(("source", "source_lengths", "tokens"), "targets", sizes, {}),
            (tokens, lengths, tokens.flip(1)),
            (2, 6, 31),
        ),
    }[form]
    config = convert.to_config(compose([f"model={choice}"]).values, REGISTRY)
    model = build.model(config.model, REGISTRY, spec, seed=0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    logits = model(*inputs)
    assert logits.shape == shape
    cross_entropy(logits.flatten(0, -2), torch.arange(logits[..., 0].numel()) % shape[-1]).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
    if form not in ("next tokens", "sequences"):
        return
    expected = model.eval()(*inputs)
    first = (tokens[:, :1], torch.ones_like(lengths)) if form == "next tokens" else (*inputs[:2], inputs[2][:, 0])
    said, state = model.start(*first)
    for time in range(6):
        torch.testing.assert_close(said, expected[:, time], rtol=1e-4, atol=1e-5)
        said, state = model.step(inputs[-1][:, min(time + 1, 5)], state)


# ---------------------------------------------------------------- tasks on text

TEXT_TASKS = {
    "chat": ("chat", "gpt", {"depth": 1, "width": 16, "heads": 2}),
    "language_model": ("language", "gpt", {"depth": 1, "width": 16, "heads": 2}),
    "masked_language_model": ("language", "bert", {}),
    "translation": ("translation", "seq2seq_gru", {"width": 16, "hidden": 16}),
    "summarization": ("translation", "transformer", {"width": 16, "heads": 2}),
}


@pytest.mark.parametrize("name", sorted(TEXT_TASKS))
def test_a_task_on_text_keeps_its_contracts(name):
    """A step lowers the loss of its batch, outputs are scored, and whoever generates says a text for each prompt."""
    import torch

    from dlrun import build, decoding
    from dlrun.contracts import Thorough, unit
    from dlrun.training.evaluate import thorough

    kind, model_name, sizes = TEXT_TASKS[name]
    overrides = [f"task={name}", "data=number_words", f"data.kind={kind}", "data.size=40", "data.largest=999",
                 f"model={model_name}", *(f"model.{key}={value}" for key, value in sizes.items())]  # fmt: skip
    if model_name == "bert":
        overrides += ["model.options={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"]
    config = convert.to_config(compose(overrides).values, REGISTRY)
    data = build.dataset(config.data, REGISTRY, build.RunTools(0, CONF, REGISTRY))
    task, model = build.task(config.task, REGISTRY, data.spec), build.model(config.model, REGISTRY, data.spec, seed=0)
    batch = data.inputs.prepare(data.splits["train"].gather(torch.arange(4)))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.eval()
    before = task.loss(model, batch)
    (before.sum / before.count).backward()
    optimizer.step()
    assert task.loss(model, batch).sum < before.sum and before.count == task.count(batch)
    assert unit(task) == "tokens"
    final = thorough(task)
    assert isinstance(task, Thorough) == (name in ("translation", "summarization"))
    with torch.no_grad():
        outputs = final.outputs(model, batch)
    for metric in final.metrics():
        metric.update(outputs)
        assert all(isinstance(value, float) for value in metric.compute().values())
    assert len(final.rows(outputs)) == 4
    assert isinstance(final, decoding.Generates) == (name != "masked_language_model")
    if isinstance(final, decoding.Generates):
        prompts = data.inputs.prepare(final.prompts(["one", "two"], data.inputs.encode))
        said = final.generate(decoding.ModelDecoder(model), prompts, decoding.Generation(3))
        assert len(said) == 2 and all(isinstance(text, str) for text in said)


# ---------------------------------------------------------------- text models of transformers

_ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_TWO_SIDED = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
TINY_OPTIONS = {
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": _ENCODER | {"num_key_value_heads": 1},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "bart": _TWO_SIDED,
    "marian": _TWO_SIDED,
}


@pytest.mark.parametrize("choice", choices_of("model", "transformers"))
def test_a_text_model_of_transformers_fits_the_texts_it_is_for(choice):
    import torch

    from dlrun import build
    from dlrun.contracts import DataSpec, Exportable

    given = ",".join(f"{name}:{value}" for name, value in TINY_OPTIONS.get(choice, _ENCODER).items())
    config = convert.to_config(compose([f"model={choice}", f"model.options={{{given}}}"]).values, REGISTRY)
    tokens, lengths = torch.randint(1, 20, (2, 6)), torch.tensor([6, 4])
    texts = DataSpec(("tokens", "lengths"), "label", {"classes": 3, "vocabulary": 20, "length": 8}, {})
    model = build.model(config.model, REGISTRY, texts, seed=0)
    assert model(tokens, lengths).shape == (2, 3) and isinstance(model, Exportable)
    if choice in ("t5", "bart", "marian"):
        sizes = {"vocabulary": 20, "target_vocabulary": 17, "length": 8, "target_length": 8}
        pairs = DataSpec(("source", "source_lengths", "tokens"), "targets", sizes, {})
        model = build.model(config.model, REGISTRY, pairs, seed=0).eval()
        assert model(tokens, lengths, tokens.clamp(max=16)).shape == (2, 6, 17)
        logits, state = model.start(tokens, lengths, torch.ones(2, dtype=torch.int64))
    else:
        windows = DataSpec(("tokens",), "targets", {"vocabulary": 20, "context": 8}, {})
        model = build.model(config.model, REGISTRY, windows, seed=0).eval()
        assert model(tokens).shape == (2, 6, 20)
        if choice not in ("gpt2", "llama"):
            return
        logits, state = model.start(tokens, lengths)
    assert model.step(logits.argmax(1), state)[0].shape == logits.shape
