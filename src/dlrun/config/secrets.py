"""What must never reach a run folder, a log or the tracker: names and values that look like secrets."""

from __future__ import annotations

import re

_NAME = re.compile(r"(token|secret|password|passwd|api_?key|credential|private)|(^|_)key$", re.IGNORECASE)
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{12,}|sk-[A-Za-z0-9_-]{16,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}[.A-Za-z0-9_-]*)"
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
REDACTED = "[redacted]"


def is_secret_name(name: str) -> bool:
    """Whether a setting or variable of this name (its last dotted part) holds a secret."""
    last = name.rsplit(".", 1)[-1]
    return last.lower() != "key" and bool(_NAME.search(last))


def redact(text: str) -> str:
    """The text without tokens of known shapes and without user names and passwords in URIs."""
    return _USERINFO.sub("", _VALUE.sub(REDACTED, text))
