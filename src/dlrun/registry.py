"""The rooms and what stands in them: a folder listing is the registry, a signature is the schema.

Signatures are read with `ast`, never by importing, so a config is checked without torch and
nothing of a user's is run before it is found legal.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import itertools
import os
import re
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun.errors import DlrunError, did_you_mean

ROOMS = {  # kind -> folder, in the package and in a user's components folder
    "task": "tasks",
    "data": "data",
    "model": "models",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "transfer": "transfer",
    "augment": "augment",
    "search": "search",
    "compression": "compression",
    "ensemble": "ensembles",
}
_PACKAGE = Path(__file__).parent
_USER_PACKAGE = "dlrun_components"


@dataclass(frozen=True)
class Setting:
    """One keyword-only parameter of a component: what a user may set.

    kinds: plain type names (bool, int, float, str, list, tuple, dict, None).
    choices: the values of a Literal, if it is one.
    """

    name: str
    kinds: tuple[str, ...]
    choices: tuple[Any, ...] = ()
    default: Any = None
    required: bool = False

    @property
    def expected(self) -> str:
        """The type as a person reads it, e.g. "int or null" or "one of a, b"."""
        words = [f"one of {', '.join(map(str, self.choices))}"] if self.choices else []
        words += ["null" if kind == "None" else kind for kind in self.kinds]
        return " or ".join(words)


@dataclass(frozen=True)
class Component:
    """One file of a room, read but not imported."""

    kind: str
    name: str
    path: Path
    settings: dict[str, Setting]
    facts: tuple[str, ...]
    summary: str
    doc: str
    users: bool  # from the user's components folder, not from the package

    @property
    def meanings(self) -> dict[str, str]:
        """What each setting is for, as the docstring of `build` says."""
        return meanings(self.doc)


def meanings(doc: str) -> dict[str, str]:
    """The "Settings:" section of a docstring: one "name: meaning" a line (or "a, b: meaning"); other lines go on with
    the one before. A blank line ends the section."""
    lines = inspect.cleandoc(doc).split("\n")
    if "Settings:" not in lines:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    section = lines[lines.index("Settings:") + 1 :]
    depth = len(section[0]) - len(section[0].lstrip()) if section else 0
    for line in itertools.takewhile(str.strip, section):
        entry = re.fullmatch(rf" {{{depth}}}(\w+(?:, \w+)*): (.*)", line)
        names = entry[1].split(", ") if entry else names
        for name in names:
            found[name] = entry[2].strip() if entry else f"{found[name]} {line.strip()}"
    return found


# ---------------------------------------------------------------- the user's own rooms


def components_folder(given: Path | None = None) -> Path | None:
    """The user's components: --components, DLRUN_COMPONENTS, or [tool.dlrun] components of ./pyproject.toml."""
    if given is not None:
        return _existing(given, "--components")
    if os.environ.get("DLRUN_COMPONENTS"):
        return _existing(Path(os.environ["DLRUN_COMPONENTS"]), "DLRUN_COMPONENTS")
    project = Path("pyproject.toml")
    if not project.is_file():
        return None
    try:
        table = tomllib.loads(project.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None  # somebody else's broken file is not ours to judge
    tool = table.get("tool")
    section = tool.get("dlrun") if isinstance(tool, dict) else None
    stated = section.get("components") if isinstance(section, dict) else None
    origin = "[tool.dlrun] components in pyproject.toml"
    if stated is not None and not isinstance(stated, str):
        raise DlrunError(f"{origin}: {stated!r} is not a folder", 'components = "components"')
    return _existing(Path(stated), origin) if stated else None


def _existing(folder: Path, origin: str) -> Path:
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise DlrunError(f"{origin}: {folder} is not a folder", "make one with: dlrun init DIR")
    return folder


# ---------------------------------------------------------------- reading


class Registry:
    """All components a command can see: the package's, then the user's."""

    def __init__(self, components: Path | None = None) -> None:
        self.components = components

    def listing(self, kind: str) -> dict[str, Path]:
        """Component name -> file, of one room. The package's own name wins over a user's."""
        return self._users(kind) | _components_in(_PACKAGE / ROOMS[kind])

    def hidden(self, kind: str) -> list[Path]:
        """The user's files that are never used, for the package has a component of their name."""
        packaged = _components_in(_PACKAGE / ROOMS[kind])
        return [path for name, path in self._users(kind).items() if name in packaged]

    def _users(self, kind: str) -> dict[str, Path]:
        return {} if self.components is None else _components_in(self.components / ROOMS[kind])

    def component(self, kind: str, name: str) -> Component:
        """Read one component. Raises: DlrunError with the nearest name, or naming a file that is no component."""
        files = self.listing(kind)
        if name not in files:
            raise DlrunError(f"{kind}.name: no component '{name}' in {ROOMS[kind]}/", did_you_mean(name, files))
        path = files[name]
        try:
            return _read(kind, name, path, path.stat().st_mtime_ns, users=not path.is_relative_to(_PACKAGE))
        except OSError as error:
            raise DlrunError(f"{path}: cannot be read: {error.strerror or error}") from error

    def load(self, kind: str, name: str) -> types.ModuleType:
        """Import one component's module (the only place where a component is imported)."""
        component = self.component(kind, name)
        if not component.users:
            return importlib.import_module(f"dlrun.{ROOMS[kind]}.{name}")
        assert self.components is not None
        _user_package(self.components)
        try:
            return importlib.import_module(f"{_USER_PACKAGE}.{ROOMS[kind]}.{name}")
        except Exception as error:
            raise DlrunError(f"{_last_line_of(error, self.components)}: cannot be imported: {error!r}") from error


def _last_line_of(error: BaseException, folder: Path) -> str:
    """The innermost line of the user's own files that an exception passed."""
    found = str(folder)
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        found = f"{file}:{trace.tb_lineno}" if Path(file).is_relative_to(folder) else found
        trace = trace.tb_next
    return found


def _components_in(folder: Path) -> dict[str, Path]:
    files = sorted(folder.glob("*.py"))
    return {path.stem: path for path in files if path.stem.isidentifier() and path.stem[0] != "_"}


def digest(path: Path) -> str:
    """SHA-256 of a component's file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _user_package(folder: Path) -> None:
    """Make the user's folder importable as one package, so that neighbours import each other relatively."""
    package = sys.modules.get(_USER_PACKAGE)
    if package is None or list(package.__path__) != [str(folder)]:
        for name in [name for name in sys.modules if name.split(".")[0] == _USER_PACKAGE]:
            del sys.modules[name]
        package = types.ModuleType(_USER_PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[_USER_PACKAGE] = package
        importlib.invalidate_caches()


@functools.lru_cache(maxsize=512)
def _read(kind: str, name: str, path: Path, mtime: int, users: bool) -> Component:
    try:
        tree = ast.parse(path.read_text(), filename=str(path))
    except (SyntaxError, ValueError) as error:  # a zero byte and a wrong encoding are ValueErrors
        line = getattr(error, "lineno", "?")
        raise DlrunError(f"{path}:{line}: is not Python: {getattr(error, 'msg', error)}") from error
    build = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build"), None)
    if build is None:
        raise DlrunError(f"{path}: has no function 'build'", "see docs/components.md")
    pairs = zip(build.args.kwonlyargs, build.args.kw_defaults, strict=True)
    settings = {argument.arg: _setting(path, argument, default) for argument, default in pairs}
    module_doc = ast.get_docstring(tree) or ""
    facts = tuple(argument.arg for argument in (*build.args.posonlyargs, *build.args.args))
    return Component(
        kind, name, path, settings, facts, module_doc.split("\n")[0], ast.get_docstring(build) or module_doc, users
    )


def _setting(path: Path, argument: ast.arg, default: ast.expr | None) -> Setting:
    where = f"{path}:{argument.lineno}: build(…, {argument.arg})"
    if argument.annotation is None:
        raise DlrunError(f"{where}: a setting needs a type annotation", "e.g. depth: int = 20")
    kinds, choices = _annotation(where, argument.annotation)
    try:
        value = None if default is None else ast.literal_eval(default)
    except (ValueError, TypeError) as error:
        raise DlrunError(f"{where}: its default must be a plain literal") from error
    return Setting(argument.arg, kinds, choices, value, required=default is None)


_PLAIN = {"bool", "int", "float", "str", "list", "tuple", "dict"}


def _annotation(where: str, node: ast.expr) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """(type names, Literal values) of an annotation such as `int | None` or `Literal["a", "b"]`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _annotation(where, node.left), _annotation(where, node.right)
        return left[0] + right[0], left[1] + right[1]
    if isinstance(node, ast.Constant) and node.value is None:
        return ("None",), ()
    if isinstance(node, ast.Name) and node.id in _PLAIN:
        return (node.id,), ()
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if all(isinstance(value, ast.Constant) for value in values):
                choices = tuple(ast.literal_eval(value) for value in values)
                return ("None",) if None in choices else (), tuple(value for value in choices if value is not None)
        if node.value.id in _PLAIN:
            return (node.value.id,), ()
    raise DlrunError(
        f"{where}: annotation '{ast.unparse(node)}' cannot be read",
        "use bool, int, float, str, Literal, list, tuple, dict, or these with | None",
    )
