"""How a conversation is laid out in tokens: dlrun's own way, or a chat template in Jinja as transformers' models have.

A template is asked once for each order of roles, with marks where the words stand. What lies between the marks is its
own, special tokens among it; the words themselves are cut as text, so that nobody's words can spell a special token.
"""

# T tokens

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dlrun._tokens_pretrained import folder_of
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from jinja2 import Template as JinjaTemplate

    from dlrun.tokens import Tokenizer

Role = Literal["system", "user", "assistant"]
_JINJA_FILE, _SETTINGS_FILE = "chat_template.jinja", "tokenizer_config.json"  # as transformers saves them
TEMPLATE_FILE = "chat_template.json"  # of a run's assets
_OPEN, _CLOSE = "\ue000", "\ue001"  # around a turn's number where its words are to stand; no alphabet has them
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
# transformers' own tags around what is learned, here blocks that change nothing.
_GENERATION = {
    r"\{%(-?)\s*generation\s*(-?)%\}": r"{%\1 if true \2%}",
    r"\{%(-?)\s*endgeneration\s*(-?)%\}": r"{%\1 endif \2%}",
}
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """The markup between the words of a conversation, and the token that ends an answer.

    source: Jinja that reads `messages` and `add_generation_prompt`; None for dlrun's own: a beginning token, then for
    each turn the marker of its role, its words and an end token.   names: what `bos_token` and the like are; those of
    the vocabulary unless given.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None, names: Mapping[str, str] | None = None) -> None:
        self.source, self.names = source, dict(names or tokenizer.names)
        self._tokenizer = tokenizer
        self._known: dict[tuple[tuple[Role, ...], bool], list[np.ndarray | int]] = {}

    @staticmethod
    def pretrained(source: str, tokenizer: Tokenizer) -> ChatTemplate:
        """That which lies with a pretrained vocabulary (see Tokenizer.pretrained); dlrun's own where none does."""
        folder = folder_of(source, [_JINJA_FILE, _SETTINGS_FILE])
        settings = _settings(folder / _SETTINGS_FILE)
        names = {name: token for name in _TOKENS if (token := _spelled(settings.get(name))) is not None}
        template = settings.get("chat_template")
        if (folder / _JINJA_FILE).is_file():
            template = _text(folder / _JINJA_FILE)
        elif isinstance(template, list):  # several, by name
            template = next((each["template"] for each in template if each.get("name") == "default"), None)
        return ChatTemplate(tokenizer, template, names)

    def read(self, path: str) -> ChatTemplate:
        """The one in a file, with these names of special tokens. Raises: DlrunError."""
        if not Path(path).expanduser().is_file():
            raise DlrunError(
                f"data.template: there is no file '{path}'", "plain, a file with a Jinja template, or null"
            )
        return ChatTemplate(self._tokenizer, _text(Path(path).expanduser()), self.names)

    @staticmethod
    def of(files: Mapping[str, bytes], tokenizer: Tokenizer) -> ChatTemplate:
        """That which is kept among the files of a run's DataSpec; dlrun's own where there is none."""
        kept = json.loads(files[TEMPLATE_FILE]) if TEMPLATE_FILE in files else {}
        return ChatTemplate(tokenizer, **kept)

    def files(self) -> dict[str, bytes]:
        """What is to be kept of it, for `of`."""
        if self.source is None:
            return {}
        return {TEMPLATE_FILE: json.dumps({"source": self.source, "names": self.names}).encode()}

    def parts(self, roles: Sequence[Role], asks: bool = False) -> list[np.ndarray | int]:
        """Markup as int32 [T], and numbers of turns where their words stand, each once.

        asks: whether the assistant is to answer now.   Raises: DlrunError with code DATA for what a template refuses.
        """
        key = tuple(roles), asks
        if key not in self._known:
            self._known[key] = self._own(*key) if self.source is None else self._rendered(*key)
        return self._known[key]

    def num_tokens(self, roles: Sequence[Role], asks: bool = False) -> int:
        """Tokens of the markup alone."""
        return sum(len(part) for part in self.parts(roles, asks) if isinstance(part, np.ndarray))

    @cached_property
    def end(self) -> int:
        """The token behind an answer. Raises: DlrunError for a template without one."""
        if self.source is None:
            return self._tokenizer.end
        behind = self.parts(("user", "assistant"))[-1]
        tokens = [] if isinstance(behind, int) else behind.tolist()
        place = next((place for place, token in enumerate(tokens) if token in self._tokenizer.specials), None)
        if place is None or self._tokenizer.decode(tokens[:place]).strip():
            raise DlrunError(
                "data.template: there is no special token behind an answer, so that no answer would know where to end",
                "data.template=plain, or a template whose answers end with one that the vocabulary has",
                Exit.DATA,
            )
        return tokens[place]

    def notes(self) -> list[str]:
        """A sentence on another layout than dlrun's own. Raises: DlrunError for a template that lays nothing out."""
        if self.source is None:
            return []
        return [
            f"conversations: laid out by a chat template, in which {self._tokenizer.spelled(self.end)} ends answers"
        ]

    def _own(self, roles: tuple[Role, ...], asks: bool) -> list[np.ndarray | int]:
        found: list[np.ndarray | int] = []
        before = [self._tokenizer.beginning]
        for index, role in enumerate(roles):
            found += [np.array([*before, *self._tokenizer.marker(role)], np.int32), index]
            before = [self._tokenizer.end]
        return [*found, np.array(before + (self._tokenizer.marker("assistant") if asks else []), np.int32)]

    def _rendered(self, roles: tuple[Role, ...], asks: bool) -> list[np.ndarray | int]:
        messages = [{"role": role, "content": f"{_OPEN}{index}{_CLOSE}"} for index, role in enumerate(roles)]
        jinja = self._jinja
        try:
            text = jinja.render(messages=messages, add_generation_prompt=asks, **self.names)
        except Exception as error:  # whatever a template does with what it is given
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DlrunError(
                f"data.template: it cannot lay out {', '.join(roles)}: {reason}", code=Exit.DATA
            ) from error
        pieces = _MARK.split(text)
        if sorted(pieces[1::2], key=int) != [str(index) for index in range(len(roles))]:
            raise DlrunError(
                f"data.template: of {', '.join(roles)} it does not say what each said once", "data.template=plain",
                Exit.DATA,
            )  # fmt: skip
        found: list[np.ndarray | int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                found.append(int(piece))
            elif piece:
                found.append(self._markup(piece))
        return found

    def _markup(self, text: str) -> np.ndarray:
        ids_T = self._tokenizer.encode_markup(text)
        if not self._tokenizer.unknowns.isdisjoint(ids_T.tolist()):
            raise DlrunError(
                f"data.template: the vocabulary has no tokens for all of '{text.strip()}'",
                "data.template=plain, or a vocabulary that has them", Exit.DATA,
            )  # fmt: skip
        return ids_T

    @cached_property
    def _jinja(self) -> JinjaTemplate:
        """As transformers renders them: blocks take their line with them, and no code is run."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refused(reason: str) -> None:
            raise TemplateError(reason)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **given: json.dumps(value, ensure_ascii=False, **given)
        environment.globals["raise_exception"] = refused  # and no clock: today's prompts are laid out as yesterday's
        assert self.source is not None
        source = self.source
        for tag, block in _GENERATION.items():
            source = re.sub(tag, block, source)
        try:
            return environment.from_string(source)
        except TemplateError as error:
            raise DlrunError(f"data.template: it is no Jinja template: {error}", code=Exit.DATA) from error


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise DlrunError(f"{path}: is no JSON: {error}", code=Exit.DATA) from error


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DlrunError(f"{path}: cannot be read: {error}", code=Exit.DATA) from error


def _spelled(token: Any) -> str | None:
    """A token's text, which may be given as a mapping with more about it."""
    return token.get("content") if isinstance(token, dict) else token
