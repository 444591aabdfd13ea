"""From a command line to a legal config, and from a run folder back."""

import hashlib
import os
from pathlib import Path

import pytest
import yaml

from dlrun.config import check, conf_folders, convert
from dlrun.config import compose as composing
from dlrun.config.compose import compose, compose_on
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry

REGISTRY = Registry()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(*overrides: str, conf: Path | None = None, registry: Registry = REGISTRY) -> RunConfig:
    return convert.to_config(compose(overrides, config_dir=conf).values, registry)


def error_of(*overrides: str, conf: Path | None = None, registry: Registry = REGISTRY) -> DlrunError:
    with pytest.raises(DlrunError) as caught:
        config(*overrides, conf=conf, registry=registry)
    assert caught.value.code == Exit.USAGE
    assert "\n" not in caught.value.hint
    return caught.value


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---------------------------------------------------------------- the grammar


def test_nothing_said_gives_the_default_run():
    made = config()
    assert (made.data.name, made.model.name, made.seed) == ("digits", "mlp", 0)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_value_is_set_whether_or_not_it_is_written_with_plus(prefix):
    assert config(f"{prefix}train.clip_norm=0.5").train.clip_norm == 0.5
    assert config(f"{prefix}model=resnet20").model.options["depth"] == 20


def test_the_last_of_two_overrides_wins():
    assert config("seed=1", "seed=2").seed == 2


def test_a_group_and_a_setting_of_its_choice_fit_together_in_any_order():
    assert config("model.depth=32", "model=resnet20").model.options["depth"] == 32


def test_a_tilde_takes_a_value_away_and_the_default_comes_back():
    assert config("data.batch_size=7", "model=mlp").data.batch_size == 7
    assert config("~train.duration").train.duration.text == "10 epochs"


def test_a_tilde_on_something_that_is_not_there_is_an_error():
    assert "model.dpth" in error_of("~model.dpth").message


def test_a_group_taken_away_is_missing():
    assert error_of("~model").message == "model: is missing"


def test_values_may_be_quoted_nested_and_interpolated():
    made = config(
        'name="a b, c=d"',
        "data.augment={flip: {probability: 0.3}, random_crop: {padding: 2}}",
        "seed=${data.batch_size}",
    )
    assert made.name == "a b, c=d"
    assert list(made.data.augment) == ["flip", "random_crop"]
    assert made.data.augment["flip"]["probability"] == 0.3
    assert made.seed == made.data.batch_size


def test_an_augmentation_gets_its_defaults_and_null_switches_it_off():
    assert config("data.augment.random_crop.padding=3").data.augment["random_crop"]["padding"] == 3
    assert config("data.augment={flip: {}}", "data.augment.flip=null").data.augment == {}


def test_an_empty_mapping_takes_all_of_an_experiments_away_and_what_comes_after_it_counts():
    experiment = "experiment=fashion_mnist_cnn"
    assert compose([experiment]).values["data"]["augment"].keys() == {"flip", "random_crop"}
    assert compose([experiment, "data.augment={}"]).values["data"]["augment"] == {}
    after = ["data.augment={}", "data.augment={rotate: {}}"]
    assert compose([experiment, *after]).values["data"]["augment"] == {"rotate": {}}
    base = compose([experiment]).values
    assert compose_on(base, ["data.augment={}"]).values["data"]["augment"] == {}


def test_an_integer_is_a_number_and_a_whole_number_an_integer():
    made = config("train.clip_norm=1", "data.batch_size=1e2")
    assert made.train.clip_norm == 1.0 and isinstance(made.train.clip_norm, float)
    assert made.data.batch_size == 100 and isinstance(made.data.batch_size, int)


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("--model=resnet20", "unknown option '--model=resnet20'", "options go before or after overrides; see --help"),
        ("model", "override 'model' cannot be read", "write key=value"),
        ("a=[1,2", "override 'a=[1,2' cannot be read", "write key=value"),
        ("hydra.run.dir=x", "'hydra.run.dir=x': hydra.* is not set here", "dlrun uses Hydra to compose only"),
        ("hydra/launcher=joblib", "hydra/launcher", ""),
        ("optimizer.lr=", "'optimizer.lr=' has no value", "optimizer.lr=null where nothing is meant"),
        ("optimizer.lr=0.1,0.2", "'optimizer.lr=0.1,0.2' holds several values: that is a sweep", "dlrun sweep"),
        ("model=mlp,cnn", "'model=mlp,cnn' holds several values: that is a sweep", "dlrun sweep"),
        ("seed=range(3)", "'seed=range(3)' holds several values", "dlrun sweep"),
        ("optimizer.lr=interval(0,1)", "holds several values", "one value for optimizer.lr, or: dlrun sweep"),
        ("model=[mlp,cnn]", "'model=[mlp,cnn]': model takes one choice", "see: dlrun list model"),
        ("model={name: mlp}", "model takes one choice", "see: dlrun list model"),
    ],
)
def test_what_is_no_override_is_refused(override, message, hint):
    error = error_of(override)
    assert message in error.message
    assert hint in error.hint


# ---------------------------------------------------------------- the nearest right spelling


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("model=resnt20", "model: no choice 'resnt20'", "did you mean resnet20?"),
        ("optimizer=adamm", "optimizer: no choice 'adamm'", "did you mean adam?"),
        ("experiment=fashion", "experiment: no choice 'fashion'", "known: "),
        ("modle=mlp", "unknown setting 'modle'", "did you mean model?"),
        ("trian.duration='5 epochs'", "unknown setting 'trian'", "did you mean train?"),
        ("sed=1", "unknown setting 'sed'", "did you mean seed?"),
        ("train.duraton='5 epochs'", "unknown setting 'train.duraton'", "did you mean train.duration?"),
        ("train.clipnorm=1", "unknown setting 'train.clipnorm'", "did you mean train.clip_norm?"),
        ("optimizer.learning_rate=1", "unknown setting 'optimizer.learning_rate' of optimizer 'adamw'", "known: "),
        ("optimizer.weight_decy=1", "of optimizer 'adamw'", "did you mean optimizer.weight_decay?"),
        ("data.batchsize=4", "unknown setting 'data.batchsize' of data 'digits'", "did you mean data.batch_size?"),
        ("hardware.device=gpu", "hardware.device: 'gpu' was given, one of auto, cpu, cuda is expected", ""),
        ("hardware.device=cudda", "one of auto, cpu, cuda is expected", "did you mean cuda?"),
        ("model.activation=rleu", "model.activation: 'rleu' was given, one of relu,", "did you mean relu?"),
        ("data.augment={flp: {}}", "unknown augmentation 'data.augment.flp'", "did you mean flip?"),
        ("data.augment.flip.prob=1", "unknown setting 'data.augment.flip.prob'", "probability"),
        ("model.name=resnt", "model.name: no component 'resnt' in models/", "did you mean resnet?"),
    ],
)  # fmt: skip
def test_a_misspelt_word_gets_the_nearest_right_one(override, message, hint):
    error = error_of(override)
    assert message in error.message
    assert hint in error.hint


def test_all_problems_are_told_at_once():
    error = error_of("trian=1", "data.batch_size=0", "train.precision=fp8")
    assert error.message.count("\n") == 2
    assert all(word in error.message for word in ("'trian'", "at least 1", "'fp8'"))


# ---------------------------------------------------------------- types and ranges


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=ten", "data.batch_size: 'ten' was given, an integer is expected"),
        ("data.batch_size=1.5", "data.batch_size: 1.5 was given, an integer is expected"),
        ("data.batch_size=true", "data.batch_size: true was given, an integer is expected"),
        ("data.batch_size=null", "data.batch_size: null was given, an integer is expected"),
        ("data.batch_size=0", "data.batch_size: 0 was given, at least 1 is expected"),
        ("data.workers=-1", "data.workers: -1 was given, at least 0 is expected"),
        ("train.ema=1", "train.ema: 1 was given, above 0 and below 1 is expected"),
        ("train.clip_norm=nan", "train.clip_norm: nan was given, a number or null is expected"),
        ("optimizer.lr=nan", "optimizer.lr: nan was given, a number is expected"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' was given, a number is expected"),
        ("train.deterministic=1", "train.deterministic: 1 was given, true or false is expected"),
        ("train.patience=soon", "train.patience: 'soon' was given, an integer or null is expected"),
        ("train=5", "train: no choice '5'"),
        ("data.augment=flip", "data.augment: 'flip' was given, a mapping is expected"),
        ("data.augment.flip=3", "data.augment.flip: 3 was given, its settings are expected"),
        ("train.duration=10", """train.duration: 10 was given, a duration such as "10 epochs" is expected"""),
        ("train.duration='10 lightyears'", "train.duration: '10 lightyears' has an unknown unit 'lightyears'"),
        ("seed=-1", "seed: -1 was given, at least 0"),
        ("model.name=../../x", "model.name: '../../x' is not the name of a component"),
        ("model.name=os.system", "model.name: 'os.system' is not the name of a component"),
        ("model.widths=7", "model.widths: 7 was given, a list or null is expected"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(override, message):
    assert message in error_of(override).message


@pytest.mark.parametrize(
    ("override", "hint"), [("name=5", """quote it: 'name="5"'"""), ("name=true", """'name="true"'""")]
)
def test_text_that_looks_like_a_number_has_to_be_quoted(override, hint):
    assert hint in error_of(override).hint
    assert config(error_of(override).hint.removeprefix("quote it: ").strip("'")).name in ("5", "true")


def test_a_missing_required_setting_is_named():
    write(Path("conf/model/mine.yaml"), "name: torchvision\n")
    error = error_of("model=mine")
    assert (error.message, error.hint) == ("model.architecture: is missing", "set model.architecture=…")


def test_a_config_survives_being_written_as_plain_values():
    made = config(
        "model=resnet20",
        "train.duration='30 minutes'",
        "data.augment={mixup: {}}",
        "transfer=finetune",
        "transfer.from=x",
    )
    assert made.transfer.source == "x"
    assert convert.to_config(yaml.safe_load(yaml.safe_dump(convert.to_plain(made))), REGISTRY) == made


# ---------------------------------------------------------------- conf folders


def test_the_users_conf_comes_before_the_packaged_one():
    write(Path("conf/model/mlp.yaml"), "# mine\nname: mlp\ndropout: 0.5\n")
    write(Path("conf/model/mine.yaml"), "# mine\nname: resnet\ndepth: 32\n")
    assert config().model.options["dropout"] == 0.5
    assert config("model=mine").model.options["depth"] == 32
    assert "mine" in conf_folders.choices("model") and "cnn" in conf_folders.choices("model")


def test_a_given_config_dir_stands_in_place_of_the_folder_conf(tmp_path):
    write(Path("conf/model/mine.yaml"), "name: mlp\n")
    other = write(tmp_path / "other/model/theirs.yaml", "name: cnn\n").parents[1]
    assert config("model=theirs", conf=other).model.name == "cnn"
    assert "no choice 'mine'" in error_of("model=mine", conf=other).message


def test_a_config_dir_that_is_no_folder_is_refused(tmp_path):
    assert error_of(conf=tmp_path / "nowhere").message.startswith("--config-dir: ")


def test_the_packaged_conf_is_not_taken_for_the_users(monkeypatch):
    monkeypatch.chdir(conf_folders.packaged_conf().parent)
    assert conf_folders.user_conf(None) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [("name: mlp\n  depth: [1,\n", "mine.yaml:2: is not YAML"),
     ("name: mlp\nname: cnn\n", "mine.yaml:2: is not YAML: found duplicate key name"),
     ("- a\n- b\n", "model: ['a', 'b'] was given, a group of settings is expected")],
    ids=["broken", "duplicate key", "a list"],
)  # fmt: skip
def test_a_broken_yaml_file_is_named(text, says):
    write(Path("conf/model/mine.yaml"), text)
    error = error_of("model=mine")
    assert says in error.message
    assert len(error.message.splitlines()) == 1


def test_an_experiment_sets_several_groups_at_once():
    write(
        Path("conf/experiment/mine.yaml"), "# @package _global_\n# mine\ndefaults:\n  - override /model: cnn\nseed: 7\n"
    )
    made = config("experiment=mine", "train.keep=1")
    assert (made.model.name, made.seed, made.train.keep) == ("cnn", 7, 1)


PINNED = """# @package _global_
# mine
defaults:
  - override /model: resnet20
model:
  shortcut: projection
optimizer:
  lr: 0.1
"""


def test_another_choice_of_a_group_leaves_out_what_the_experiment_sets_there():
    write(Path("conf/experiment/mine.yaml"), PINNED)
    made = config("experiment=mine", "model=mlp")
    assert (made.model.name, made.optimizer.options["lr"]) == ("mlp", 0.1)
    found = compose(["model=mlp", "experiment=mine"], origins=True)
    assert found.notes == ("with model=mlp, what experiment=mine sets is left out: model.shortcut",)
    assert "model.shortcut" not in found.origins and found.origins["optimizer.lr"].endswith("experiment/mine.yaml")
    assert "lr" not in compose(["experiment=mine", "optimizer=sgd"]).values["optimizer"]


def test_the_experiments_own_choice_keeps_its_settings_when_it_is_typed():
    write(Path("conf/experiment/mine.yaml"), PINNED)
    found = compose(["experiment=mine", "model=resnet20", "optimizer=adamw"])
    assert found.values["model"]["shortcut"] == "projection"
    assert (found.values["optimizer"]["lr"], found.notes) == (0.1, ())


def test_a_setting_typed_for_the_other_choice_counts_and_errs_if_unknown():
    write(Path("conf/experiment/mine.yaml"), PINNED)
    assert config("experiment=mine", "model.dropout=0.5", "model=mlp").model.options["dropout"] == 0.5
    typed = error_of("experiment=mine", "model=mlp", "model.shortcut=pad")
    assert "unknown setting 'model.shortcut'" in typed.message


@pytest.mark.slow
def test_every_experiment_takes_another_model():
    reads_with_its_model = {"ag_news_minilm", "sst2_bert", "sst2_minilm"}  # data.pretrained is model.path
    for name in conf_folders.choices("experiment"):
        if name in reads_with_its_model:
            assert "model.path" in error_of(f"experiment={name}", "model=tabular_linear").message
        else:
            assert config(f"experiment={name}", "model=tabular_linear").model.name == "tabular_linear"


def test_an_experiment_without_its_first_line_says_so():
    write(Path("conf/experiment/mine.yaml"), "# mine\nseed: 7\n")
    assert error_of("experiment=mine").hint == "make '# @package _global_' its first line"


def test_an_interpolation_to_nowhere_is_an_error():
    assert "data.nothing" in error_of("seed=${data.nothing}").message


def test_the_environment_is_read_where_a_config_asks_for_it(monkeypatch):
    monkeypatch.setenv("MY_NAME", "emil")
    assert config("name=${oc.env:MY_NAME}").name == "emil"
    assert config("name=${oc.env:NOT_THERE,otto}").name == "otto"
    error = error_of("name=${oc.env:NOT_THERE}")
    assert (error.message, error.hint) == ("the config needs the environment variable NOT_THERE", "export NOT_THERE=…")


def test_a_secret_of_the_environment_never_gets_into_a_config(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwx")
    error = error_of("name=${oc.env:HF_TOKEN}")
    assert "secret" in error.message and "abcdef" not in str(error)


# ---------------------------------------------------------------- origins


def test_every_value_knows_where_it_came_from():
    mine = write(Path("conf/model/mine.yaml"), "name: resnet\ndepth: 32\n").absolute()
    found = compose(["model=mine", "train.keep=5", "data.augment={flip: {}}"], origins=True).origins
    assert found["model.depth"] == f"user: {mine}"
    assert found["seed"] == f"packaged: {conf_folders.packaged_conf() / 'run.yaml'}"
    assert found["optimizer.name"].startswith("packaged: ") and found["optimizer.name"].endswith("optimizer/adamw.yaml")
    assert found["train.keep"] == "command line: train.keep=5"
    assert found["data.augment.flip"] == "command line: data.augment={flip: {}}"


# ---------------------------------------------------------------- groups that are kept from one trial to the next


def outcome(overrides: list[str], verb: str | None) -> object:
    """What composing gives, or the sentence of its error."""
    try:
        return compose(overrides, verb=verb)
    except DlrunError as error:
        return error.message


@pytest.mark.parametrize(
    ("overrides", "verb"),
    [(["optimizer.lr=0.5", "data.batch_size=7"], None),
     (["optimizer.lr=0.25"], None),
     (["model.depth=32", "model=resnet20", "optimizer=sgd", "optimizer.momentum=0.5"], None),
     (["train.clip_norm=1", "~train.clip_norm"], None),
     (["~train.duration", "train.duration=3 epochs", "~seed"], None),
     (["~train.duration=10 epochs"], None),
     (["~model"], None), (["~schedule", "schedule.name=warmup_cosine"], None),
     (["data.batch_size=7", "seed=${data.batch_size}", "name=${model.name}-${seed}"], None),
     (["data.augment={flip: {}, random_crop: {padding: 2}}", "data.augment.flip=null"], None),
     (["data.augment={flip: {}, random_crop: {padding: 2}}", "~data.augment.random_crop"], None),
     (["experiment=mine", "train.keep=2"], None), (["experiment=mine", "model=resnet20", "~seed"], None),
     (["search.trials=3"], "search=tpe"),
     (["model@compression.distill.student=resnet20", "compression.distill.student.depth=8"], "compression=distill"),
     (["~model.dpth"], None), (["seed=${data.nothing}"], None), (["extra=one"], None), (["nothing@model=3"], None)],
)  # fmt: skip
def test_a_config_on_groups_that_were_kept_is_the_one_composed_anew(overrides, verb, monkeypatch):
    write(Path("conf/extra/one.yaml"), "size: 1\n")
    body = "defaults:\n  - override /model: cnn\nseed: 7\nname: ${model.name} of ${seed}\n"
    write(Path("conf/experiment/mine.yaml"), f"# @package _global_\n{body}")
    for before in (["seed=5", "train.clip_norm=2", "optimizer.lr=9"], overrides):
        outcome([*[text for text in overrides if composing._is_group(composing._parse(text))], *before], verb)
    kept = outcome(overrides, verb)
    monkeypatch.setattr(composing, "_composed", lambda lines, _: (composing.hydra_compose("run", overrides=lines), {}))
    assert kept == outcome(overrides, verb)


def test_groups_are_composed_once_until_a_conf_file_changes(monkeypatch):
    calls: list[list[str]] = []
    anew = composing.hydra_compose

    def noted(config_name: str, overrides: list[str]):
        calls.append(overrides)
        return anew(config_name, overrides)

    monkeypatch.setattr(composing, "hydra_compose", noted)
    mine = write(Path("conf/model/mine.yaml"), "name: mlp\ndropout: 0.25\n")
    for seed in range(3):
        assert config("model=mine", f"seed={seed}", "model.dropout=0.5").seed == seed
    assert calls == [["model=mine"]]
    assert config("model=mine", "seed=1").model.options["dropout"] == 0.25  # nothing of the others is left
    write(mine, "name: mlp\ndropout: 0.75\n")
    os.utime(mine, ns=(1, 1))
    Path("conf/model/.#mine.yaml").symlink_to("nobody@nowhere")  # as an editor locks a file
    assert config("model=mine", "seed=1").model.options["dropout"] == 0.75
    assert calls == [["model=mine"], ["model=mine"]]


# ---------------------------------------------------------------- on a run's config


def test_overrides_change_a_runs_config_and_a_group_replaces_its_node():
    base = convert.to_plain(config("model=resnet20", "seed=3", "name=base"))
    made = convert.to_config(compose_on(base, ["model=cnn", "data.batch_size=9"]).values, REGISTRY)
    assert (made.model.name, made.data.batch_size, made.seed, made.name) == ("cnn", 9, 3, "base")
    assert base["model"]["name"] == "resnet"


def test_nothing_is_deleted_from_a_runs_config():
    with pytest.raises(DlrunError, match="nothing can be deleted"):
        compose_on(convert.to_plain(config()), ["~seed"])


# ---------------------------------------------------------------- reading a run's config back


def changed(folder: Path, text: str, *, digest: bool = True) -> Path:
    """A run folder with this config.yaml, and its right digest unless one asks for none."""
    write(folder / "config.yaml", text)
    if digest:
        write(folder / "config.sha256", hashlib.sha256(text.encode()).hexdigest())
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(DlrunError) as caught:
        check.read(folder, REGISTRY)
    assert caught.value.code == Exit.DATA
    assert str(folder / "config.yaml") in caught.value.message
    return caught.value.message


def test_a_config_is_read_back_as_it_was_written(tmp_path):
    made = config("model=resnet20", "optimizer.lr=1e-05")
    check.write(tmp_path, made)
    assert check.read(tmp_path, REGISTRY) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {_target_: os.system, command: 'touch owned'}", "'model._target_' is not allowed in a run's config"),
        ("model: {name: mlp, list: [{_partial_: true}]}", "'model.list.0._partial_' is not allowed"),
        ("name: ${oc.env:HOME}", "'name' holds an interpolation"),
        ("name: ['${now:%Y}']", "'name.0' holds an interpolation"),
        (
            "name: !!python/object/apply:os.system ['touch owned']",
            "is not plain YAML: could not determine a constructor",
        ),
        ("name: !!python/name:os.system", "is not plain YAML"),
        ("a: &a [x, x]\nb: [*a, *a]", "is not plain YAML: it has aliases"),
        ("[" * 10_000 + "]" * 10_000, "is not plain YAML: it is nested too deeply"),
        ("name: [", "is not plain YAML"),
        ("just words", "is not a config"),
        ("3: x", "'3' is not allowed"),
        ("a: \x00", "is not plain YAML"),
    ],
)
def test_a_config_that_is_more_than_plain_values_is_refused(text, says, tmp_path):
    assert says in refusal(changed(tmp_path, text))
    assert not Path("owned").exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "os.system", "mlp.py", ""])
def test_a_component_is_named_and_never_given_as_a_path(name, tmp_path):
    values = convert.to_plain(config())
    values["model"]["name"] = name
    with pytest.raises(DlrunError, match="is not the name of a component"):
        check.read(changed(tmp_path, yaml.safe_dump(values)), REGISTRY)


def test_a_config_that_was_changed_is_refused(tmp_path):
    check.write(tmp_path, config())
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    assert "was changed after the run began" in refusal(tmp_path)


def test_a_config_that_is_missing_or_no_text_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path)


# ---------------------------------------------------------------- a user's component


def test_a_setting_that_hides_a_common_one_is_refused(tmp_path):
    folder = write(
        tmp_path / "components/data/mine.py", '"""Mine."""\ndef build(tools, *, workers: int = 1): ...\n'
    ).parents[1]
    write(Path("conf/data/mine.yaml"), "name: mine\n")
    error = error_of("data=mine", registry=Registry(folder))
    assert "build(…, workers) hides the common setting data.workers" in error.message
