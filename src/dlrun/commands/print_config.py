"""`dlrun train --print-config`: the composed config as YAML, each value with where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from dlrun.commands._terminal import print_json
from dlrun.config import convert
from dlrun.config.compose import compose, leaves

if TYPE_CHECKING:
    from dlrun.commands.train import Options


def print_config(overrides: Sequence[str], options: Options, *, origin: bool) -> int:
    """Print the config of a command line, checked, with every default filled in."""
    composed = compose(overrides, config_dir=options.config_dir, origins=origin)
    plain = convert.to_plain(convert.to_config(composed.values, options.registry))
    if options.as_json:
        print_json(plain)
        return 0
    if not origin:
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
        return 0
    rows = [
        (f"{name}: {_shown(value)}", composed.origins.get(name) or _default_of(name, plain, options))
        for name, value in leaves(plain).items()
    ]
    width = min(60, max(len(text) for text, _ in rows))
    for text, where in rows:
        print(f"{text:<{width}}  # {where}")
    return 0


def _shown(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()


def _default_of(name: str, plain: dict, options: Options) -> str:
    """Where a value comes from that no file and no override sets."""
    group, _, key = name.partition(".")
    chosen = plain.get(group)
    if isinstance(chosen, dict) and "name" in chosen and chosen["name"] != "none":
        component = options.registry.component(group, chosen["name"])
        if key.split(".")[0] in component.settings:
            return f"default of {component.path.parent.name}/{component.path.name}"
    return "default of the schema"
