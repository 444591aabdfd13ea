"""Components: found in folders, read without being imported, imported when they are found legal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun.errors import DlrunError
from dlrun.registry import ROOMS, Registry, components_folder, digest, meanings

MINE = '''"""Mine."""

import torch  # stands for anything slow


def build(spec, *, depth: int = 3, mode: Literal["a", "b", None] = "a", widths: list[int] = [1, 2],
          rate: float | None = None, path: str):
    """What it does.

    Settings:
        depth: number of layers,
            at least 1
        mode, rate: of the thing
        widths: of each layer: first to last

    Source: nobody
    """
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "components"
    (made / "models").mkdir(parents=True)
    return made


def write(folder: Path, text: str, name: str = "mine") -> Registry:
    (folder / "models" / f"{name}.py").write_text(text)
    return Registry(folder)


def error_of(folder: Path, text: str) -> str:
    with pytest.raises(DlrunError) as caught:
        write(folder, text).component("model", "mine")
    return str(caught.value)


# ---------------------------------------------------------------- reading


def test_a_signature_is_read_without_importing_anything(folder):
    component = write(folder, MINE + "\nraise SystemExit('imported')\n").component("model", "mine")
    assert component.facts == ("spec",)
    assert component.summary == "Mine." and component.users
    settings = component.settings
    assert (settings["depth"].kinds, settings["depth"].default) == (("int",), 3)
    assert (settings["mode"].choices, settings["mode"].expected) == (("a", "b"), "one of a, b or null")
    assert (settings["widths"].kinds, settings["widths"].default) == (("list",), [1, 2])
    assert (settings["rate"].kinds, settings["rate"].expected) == (("float", "None"), "float or null")
    assert settings["path"].required and not settings["depth"].required


def test_meanings_are_read_from_the_settings_section():
    doc = MINE[MINE.index('"""What') + 3 : MINE.rindex('"""')]
    assert meanings(doc) == {
        "depth": "number of layers, at least 1", "mode": "of the thing", "rate": "of the thing",
        "widths": "of each layer: first to last",
    }  # fmt: skip


def test_a_docstring_without_settings_means_nothing():
    assert meanings("Only words.") == {} and meanings("") == {} and meanings("Settings:") == {}


def test_a_changed_file_is_read_again(folder):
    registry = write(folder, '"""One."""\ndef build(spec, *, a: int = 1): ...\n')
    assert registry.component("model", "mine").settings["a"].default == 1
    path = folder / "models" / "mine.py"
    path.write_text('"""Two."""\ndef build(spec, *, a: int = 2): ...\n')
    os.utime(path, ns=(1, 1))
    assert registry.component("model", "mine").settings["a"].default == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def build(spec:\n", "mine.py:1: is not Python"),
        ("x = '\0'\n", "mine.py:"),
        ("x = 1\n", "mine.py: has no function 'build'"),
        ("def build(spec, *, a=1): ...\n", "mine.py:1: build(…, a): a setting needs a type annotation"),
        ("def build(spec, *, a: int = 1 + x): ...\n", "build(…, a): its default must be a plain literal"),
        ("def build(spec, *, a: dict = {[]: 1}): ...\n", "build(…, a): its default must be a plain literal"),
        ("def build(spec, *, a: Tensor = None): ...\n", "build(…, a): annotation 'Tensor' cannot be read"),
        ("def build(spec, *, a: Optional[int] = None): ...\n", "annotation 'Optional[int]' cannot be read"),
        ("def build(spec, *, a: Literal[X] = 1): ...\n", "annotation 'Literal[X]' cannot be read"),
    ],
)
def test_a_file_that_is_no_component_says_where_and_why(folder, text, says):
    assert says in error_of(folder, text)


def test_an_unknown_component_gets_the_nearest_name(folder):
    with pytest.raises(DlrunError, match=r"model\.name: no component 'mien' in models/") as caught:
        write(folder, MINE).component("model", "mien")
    assert caught.value.hint == "did you mean mine?"


# ---------------------------------------------------------------- folders


def test_neighbours_and_odd_files_are_no_components(folder):
    for name in ("_layers", "my-net", ".hidden", "9lives"):
        (folder / "models" / f"{name}.py").write_text("x = 1\n")
    (folder / "models" / ".#lock.py").symlink_to("nowhere")
    assert set(Registry(folder).listing("model")) == set(Registry().listing("model"))


def test_a_packaged_component_wins_and_the_users_is_told_apart(folder):
    registry = write(folder, '"""Mine."""\ndef build(spec): ...\n', name="mlp")
    assert not registry.component("model", "mlp").users
    assert registry.hidden("model") == [folder / "models" / "mlp.py"]
    assert write(folder, '"""Mine."""\ndef build(spec): ...\n').component("model", "mine").users


def test_every_room_has_components_of_its_own():
    assert all(Registry().listing(kind) for kind in ROOMS)


def test_the_users_folder_is_found_in_the_stated_order(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert components_folder() is None
    (tmp_path / "pyproject.toml").write_text('[tool.dlrun]\ncomponents = "components"\n')
    assert components_folder() == folder
    other, third = tmp_path / "other", tmp_path / "third"
    other.mkdir(), third.mkdir()
    monkeypatch.setenv("DLRUN_COMPONENTS", str(other))
    assert components_folder() == other
    assert components_folder(third) == third


@pytest.mark.parametrize(
    "text", ["", "[tool.other]\n", "tool = 3\n", "[tool]\ndlrun = 3\n", "broken = [\n", "[tool.dlrun]\n"]
)
def test_a_pyproject_that_says_nothing_of_dlrun_is_left_alone(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(text)
    assert components_folder() is None


@pytest.mark.parametrize("value", ['"nowhere"', "3"])
def test_a_components_folder_that_is_none_is_an_error(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(f"[tool.dlrun]\ncomponents = {value}\n")
    with pytest.raises(DlrunError, match="is not a folder"):
        components_folder()


# ---------------------------------------------------------------- loading


def test_a_users_component_is_imported_with_its_neighbours(folder):
    (folder / "models" / "_layers.py").write_text("WORD = 'neighbour'\n")
    registry = write(folder, '"""Mine."""\nfrom . import _layers\ndef build(spec):\n    return _layers.WORD\n')
    assert registry.load("model", "mine").build(None) == "neighbour"


def test_a_second_folder_replaces_the_first(folder, tmp_path):
    write(folder, '"""Mine."""\ndef build(spec):\n    return 1\n')
    other = tmp_path / "other"
    (other / "models").mkdir(parents=True)
    write(other, '"""Mine."""\ndef build(spec):\n    return 2\n')
    found = [Registry(path).load("model", "mine").build(None) for path in (folder, other, folder)]
    assert found == [1, 2, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [("import nothing_of_this_name\n", "mine.py:2: cannot be imported: ModuleNotFoundError"),
     ("WORD = other\n", "mine.py:2: cannot be imported: NameError")],
)  # fmt: skip
def test_a_users_component_that_fails_to_import_says_where(folder, text, says):
    registry = write(folder, '"""Mine."""\n' + text + "def build(spec): ...\n")
    with pytest.raises(DlrunError) as caught:
        registry.load("model", "mine")
    assert says in caught.value.message


def test_a_packaged_component_is_the_module_of_its_room():
    assert Registry().load("schedule", "cosine").__name__ == "dlrun.schedules.cosine"


def test_a_digest_changes_with_the_file(folder):
    write(folder, "x = 1\n")
    path = folder / "models" / "mine.py"
    before = digest(path)
    assert digest(path) == before and len(before) == 64
    path.write_text("x = 2\n")
    assert digest(path) != before


def test_reading_all_components_imports_no_torch():
    program = (
        "import sys, json\nfrom dlrun.registry import ROOMS, Registry\nr = Registry()\n"
        "[r.component(k, n) for k in ROOMS for n in r.listing(k)]\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "yaml", "hydra"} & set(json.loads(done.stdout))
