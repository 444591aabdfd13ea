"""Why torch's exporters refuse a model, in one line."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def reason(error: BaseException) -> str:
    """The first line of what the exporter met, without colours. Its own error says how far it came; the cause why."""
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[0].partition("Next steps:")[0].strip() if lines else type(error).__name__
