"""Methods of a user's own: one file and one YAML each, for the verbs that make runs of runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dlrun import predictor
from dlrun.commands import _making as making
from dlrun.config import check
from dlrun.registry import Registry, digest
from dlrun.runs import find

ROUND = '''"""Round weights."""


def build(spec, *, decimals: int = 2):
    """Every weight is rounded.

    Settings:
    decimals: digits that stay
    """
    return Rounded(decimals)


class Rounded:
    def __init__(self, decimals):
        self.decimals = decimals

    def compress(self, model, tools):
        for weights in model.parameters():
            weights.data = weights.data.round(decimals=self.decimals)
        return model, {"report": {"decimals": self.decimals}}

    def reshape(self, model, plan, tools):
        return model
'''
FIRST = '''"""Believe the first member."""


def build(spec):
    """Nothing is combined."""
    return First()


class First:
    def fit(self, members, task):
        return {}

    def held_out(self, members, plan):
        return members[0]

    def combine(self, members, plan):
        return members[0]
'''
UPWARDS = '''"""Random draws from the next seed."""

import optuna


def build(space, goals, seed):
    """Random draws from the next seed."""
    return optuna.samplers.RandomSampler(seed=seed + 1)
'''

pytestmark = pytest.mark.usefixtures("short_timing")


@pytest.fixture
def own(runs, tmp_path, monkeypatch) -> Path:
    """The user's components folder, with a choice of each in ./conf; commands of this test find it."""
    for kind, room, name, text in (
        ("compression", "compression", "rounded", ROUND), ("ensemble", "ensembles", "first", FIRST),
        ("search", "search", "upwards", UPWARDS),
    ):  # fmt: skip
        path = tmp_path / "components" / room / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        choice = tmp_path / "conf" / kind / f"{name}.yaml"
        choice.parent.mkdir(parents=True)
        choice.write_text(f"{'# @package compression.rounded' if kind == 'compression' else '# Mine'}\nname: {name}\n")
    monkeypatch.setenv("DLRUN_COMPONENTS", str(tmp_path / "components"))
    return tmp_path / "components"


def said(dlrun, *words: str) -> dict:
    code, out, err = dlrun(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_an_own_compression_keeps_its_file_and_is_read_back_and_missed(runs, train, dlrun, own, monkeypatch):
    run = train("model=mlp", "name=source")
    found = said(dlrun, "compress", "source", "compression=rounded", "compression.rounded.decimals=1")
    made = find(runs, found["run_id"])
    path = own / "compression" / "rounded.py"
    assert made.record.components == {"compression/rounded.py": digest(path)}
    assert (made.folder / "components/compression/rounded.py").read_text() == ROUND
    weights = dict(predictor.load(made.folder, "cpu", Registry(own)).model.named_parameters())
    whole = dict(predictor.load(run.folder, "cpu").model.named_parameters())
    assert all(torch.equal(weights[name], whole[name].round(decimals=1)) for name in whole)

    on = find(runs, said(dlrun, "compress", made.id, "compression=quantize_weights")["run_id"])
    assert on.record.components == made.record.components
    path.write_text(ROUND + "# changed\n")
    config = check.read(made.folder, Registry(own))
    assert making.keep_components(made, config, Registry(own), [("compression", "rounded")]).record == made.record
    code, _, err = dlrun("evaluate", on.id)
    assert code == 0 and "warning: compression/rounded.py has changed since run" in err
    monkeypatch.delenv("DLRUN_COMPONENTS")
    code, _, err = dlrun("evaluate", on.id)
    assert code == 2 and "uses your component compression/rounded.py, which is not found" in err


def test_an_own_ensemble_keeps_its_file_and_says_what_its_method_says(runs, train, dlrun, own):
    train("name=one", "data.split_seed=0"), train("name=two", "data.split_seed=0", "seed=1")
    found = said(dlrun, "ensemble", "one", "two", "ensemble=first")
    assert find(runs, found["run_id"]).record.components.keys() == {"ensembles/first.py"}
    assert found["metrics"]["test/accuracy"] == find(runs, "one").result["metrics"]["test/accuracy"]
    assert said(dlrun, "evaluate", found["run_id"])["metrics"]["test/accuracy"] == found["metrics"]["test/accuracy"]


@pytest.mark.slow
def test_an_own_search_keeps_its_file_and_chooses_the_trials(runs, own):
    words = ("model=logistic", "train.duration=1 epoch", "hardware.device=cpu", "search=upwards", "search.trials=2",
             "optimizer.lr=interval(0.001,0.1)", "tracking.system_metrics=false")  # fmt: skip
    command = [sys.executable, "-m", "dlrun", "sweep", *words, "--json"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    assert find(runs, found["run_id"]).record.components.keys() == {"search/upwards.py"}
    assert len({trial["settings"]["optimizer.lr"] for trial in found["trials"]}) == 2
