"""The shape of the house, read from its source: who may import whom, and what may not be written anywhere."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from dlrun.registry import ROOMS

SOURCE = Path(__file__).parents[2] / "src" / "dlrun"

# A file may import what lies lower, and its own unit (a folder, or a file with its `_name_*` neighbours). Where two
# units of one floor know each other, the second stands half a step higher.
LAYERS = {
    "errors": 0.0,
    "machine": 1.0, "runs": 1.0, "registry": 1.0, "config": 1.5,
    "pretrained": 1.0, "tokens": 2.0, "randomness": 2.0, "contracts": 2.2,
    "metrics": 2.4, "decoding": 2.4, "masking": 2.4, "pictures": 2.4, "copies": 2.4,
    **dict.fromkeys(ROOMS.values(), 3.0),
    "training": 4.0, "tracking": 4.0,
    "build": 5.0, "assembly": 5.1, "predictor": 5.2, "serving": 5.4, "exporting": 5.6,
    "worker": 6.0, "launch": 6.2, "trials": 6.3, "commands": 6.4,
    "cli": 7.0, "__main__": 7.2,
}  # fmt: skip

FIT_BUDGET_LINES = 60


class Import(NamedTuple):
    """One imported module, dotted, and the line."""

    module: str
    line: int


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file, inside functions too; `from dlrun import runs` is dlrun.runs."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    package = ["dlrun", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(module, node.lineno)
            yield from (Import(f"{module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (Import(str(name.value), node.lineno) for name in node.args if isinstance(name, ast.Constant))


def unit(module: str) -> str | None:
    """The unit of a dotted module of ours: "config" of dlrun.config.compose, "tracking" of dlrun._tracking_store."""
    parts = module.split(".")
    if parts[0] != "dlrun" or len(parts) < 2:
        return None
    name = parts[1]
    if name.startswith("_") and not name.startswith("__"):
        name = name.lstrip("_").split("_")[0]
    return name if name in LAYERS or (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file() else None


def unit_of(path: Path) -> str | None:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return None if parts == ("__init__",) else unit(".".join(("dlrun", *parts)))


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_every_file_has_a_layer():
    assert [relative(path) for path in files() if unit_of(path) not in LAYERS and path != SOURCE / "__init__.py"] == []


def test_imports_go_strictly_downward():
    wrong = []
    for path in files():
        own = unit_of(path)
        for item in imports(path) if own else ():
            other = unit(item.module)
            if other is not None and other != own and LAYERS[other] >= LAYERS[own]:
                wrong.append(f"{relative(path)}:{item.line} imports {item.module}")
    assert wrong == []


def test_rooms_know_neither_each_other_nor_the_engine():
    rooms, wrong = set(ROOMS.values()), []
    for path in files():
        own = unit_of(path)
        known = {unit(item.module) for item in imports(path)} if own in rooms else set()
        wrong += [f"{own} knows {other}" for other in known & (rooms | {"training", "tracking", "build"}) - {own}]
    assert wrong == []


def test_components_never_see_the_config_of_a_run():
    wrong = []
    for path in files():
        if unit_of(path) in set(ROOMS.values()):
            names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
            names |= {item.module.rpartition(".")[2] for item in imports(path)}
            wrong += [relative(path)] if "RunConfig" in names else []
    assert wrong == []


@pytest.mark.parametrize(
    ("library", "may"),
    [
        ("hydra", lambda name: name == "config/compose.py"),
        ("omegaconf", lambda name: name == "config/compose.py"),
        ("mlflow", lambda name: name in ("tracking.py", "serving.py") or name.startswith("_tracking_")),
    ],
)
def test_a_library_is_imported_in_one_place_only(library, may):
    users = {relative(path) for path in files() for item in imports(path) if item.module.split(".")[0] == library}
    assert users, f"nothing imports {library}: has this test lost its eyes?"
    assert [name for name in sorted(users) if not may(name)] == []


def test_config_and_runs_are_free_of_torch():
    low = [path for path in files() if unit_of(path) in LAYERS and LAYERS[unit_of(path)] < 2]
    users = [relative(path) for path in low for item in imports(path) if item.module.split(".")[0] == "torch"]
    assert users == []


def test_the_loop_fits_on_its_page():
    loop = tree(SOURCE / "training" / "loop.py")
    fit = next(node for node in loop.body if isinstance(node, ast.FunctionDef) and node.name == "fit")
    assert fit.end_lineno - fit.lineno + 1 <= FIT_BUDGET_LINES


@pytest.mark.parametrize("word", ["detection"])
def test_one_kind_of_task_is_known_to_its_rooms_alone(word):
    """What others must know of a task they ask the task: its unit, its name on the hub, its files."""
    may = {*ROOMS.values(), "metrics", "pictures"}
    lines = [(path, number, line) for path in files() if unit_of(path) not in may
             for number, line in enumerate(path.read_text().lower().splitlines(), start=1)]  # fmt: skip
    assert [f"{relative(path)}:{number}" for path, number, line in lines if word in line] == []


# ---------------------------------------------------------------- what may not be written


@cache
def calls(path: Path) -> tuple[tuple[str, ast.Call], ...]:
    return tuple((ast.unparse(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(item.value) for item in call.keywords if item.arg == name), None)


def is_forbidden(name: str, call: ast.Call) -> bool:
    if name in ("eval", "exec", "__import__", "os.system", "os.popen", "torch.save"):
        return True
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
        return True
    if name == "torch.load":
        return keyword(call, "weights_only") != "True"
    return keyword(call, "shell") == "True" or keyword(call, "allow_pickle") not in (None, "False") or (
        keyword(call, "trust_remote_code") not in (None, "False")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [("torch.save(x, p)", True), ("torch.load(p)", True), ("torch.load(p, weights_only=True)", False),
     ("subprocess.run(c, shell=True)", True), ("model.eval()", False), ("yaml.safe_load(t)", False),
     ("np.load(p, allow_pickle=True)", True), ("eval(t)", True)],
)  # fmt: skip
def test_the_list_of_forbidden_calls_means_what_it_says(text, expected):
    call = ast.parse(text, mode="eval").body
    assert is_forbidden(ast.unparse(call.func), call) is expected


def test_nothing_runs_code_out_of_data():
    wrong = [f"{relative(path)}:{call.lineno} {name}" for path in files() for name, call in calls(path)
             if is_forbidden(name, call)]  # fmt: skip
    assert wrong == []


def test_no_pickle_is_written_or_read():
    """Of pickle only the name of its error is known, to say that a foreign file is damaged."""
    picklers = {"cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    wrong = [f"{relative(path)}:{item.line}" for path in files() for item in imports(path)
             if item.module.split(".")[0] in picklers or item.module in ("pickle.load", "pickle.loads")]  # fmt: skip
    used = {ast.unparse(node) for path in files() for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    assert wrong == []
    assert {name for name in used if name.startswith("pickle.")} <= {"pickle.UnpicklingError"}


def test_nothing_is_called_instantiate():
    defined = [f"{relative(path)}: {node.name}" for path in files() for node in ast.walk(tree(path))
               if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and "instantiate" in node.name.lower()]  # fmt: skip
    assert defined == []


def test_there_is_no_drawer_file():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
    assert [relative(path) for path in files() if path.stem.lstrip("_") in drawers] == []


def test_every_file_says_what_it_is_for():
    assert [relative(path) for path in files() if not ast.get_docstring(tree(path))] == []


def test_a_room_holds_nothing_but_its_docstring_in_its_init():
    wrong = []
    for folder in ("config", "training", "metrics", "commands", *ROOMS.values()):
        body = tree(SOURCE / folder / "__init__.py").body
        if len(body) != 1 or not isinstance(body[0], ast.Expr):
            wrong.append(folder)
    assert wrong == []
