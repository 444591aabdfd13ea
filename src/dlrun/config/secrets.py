"""What must never reach a run folder, a log or the tracker: names and values that look like secrets."""

from __future__ import annotations

import re

# The last word decides: hf_token and API_KEY are secrets, tokenizer, max_tokens and pad_token_id are not.
_NAME = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_?key|private_?key)$|_key$", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"(pad|bos|eos|unk|cls|sep|mask)_token$", re.IGNORECASE)
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{12,}|sk-[A-Za-z0-9_-]{16,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}[.A-Za-z0-9_-]*)"
)
_QUERY = re.compile(r"(?<=[?&])([A-Za-z_]*(?:token|secret|password|key)=)[^&\s]+", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
REDACTED = "[redacted]"


def is_secret_name(name: str) -> bool:
    """Whether a setting or variable of this name (its last dotted part) holds a secret."""
    last = name.rsplit(".", 1)[-1]
    return bool(_NAME.search(last)) and not _SPECIAL_TOKEN.search(last)


def redact(text: str) -> str:
    """The text without tokens of known shapes and without user names, passwords and keys in URIs."""
    return _QUERY.sub(rf"\1{REDACTED}", _USERINFO.sub("", _VALUE.sub(REDACTED, text)))
