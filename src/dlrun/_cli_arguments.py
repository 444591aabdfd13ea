"""Arguments and options that several verbs share, and what the shell completes them with. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

# ---------------------------------------------------------------- completion


def complete_overrides(incomplete: str) -> list[str]:
    """Groups, their choices and settings: `mod` -> model=, `model=re` -> model=resnet20, `model.d` -> model.depth=."""
    from dlrun.commands._completion import overrides

    return overrides(incomplete)


def complete_runs(incomplete: str) -> list[str]:
    """Ids and names of runs."""
    from dlrun.commands._completion import run_names

    return run_names(incomplete)


def complete_kinds(incomplete: str) -> list[str]:
    """Groups and rooms."""
    from dlrun.commands._completion import kinds

    return kinds(incomplete)


def complete_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Choices and components of the kind before."""
    from dlrun.commands._completion import names

    return names(str(ctx.params.get("kind")), incomplete)


def complete_sought(incomplete: str) -> list[str]:
    """What dlrun find finds."""
    return [word for word in ("lr", "batch-size") if word.startswith(incomplete)]


# ---------------------------------------------------------------- arguments


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]…",
        help="model=resnet20 optimizer.lr=0.1 …; see: dlrun list",
        autocompletion=complete_overrides,
    ),
]
_RUN: Any = typer.Argument(metavar="RUN", help="Id, prefix, name, folder or 'latest'.", autocompletion=complete_runs)
RunName = Annotated[str, _RUN]
OptionalRunName = Annotated[str | None, _RUN]
RunNames = Annotated[
    list[str], typer.Argument(metavar="RUN…", help="Ids, prefixes, names or folders.", autocompletion=complete_runs)
]
RunsFolder = Annotated[Path | None, typer.Option("--runs", metavar="DIR", help="Where runs live (DLRUN_RUNS; ./runs).")]
Components = Annotated[Path | None, typer.Option("--components", metavar="DIR", help="Your own components.")]
ConfigDir = Annotated[Path | None, typer.Option("--config-dir", "-cd", metavar="DIR", help="Your own conf (./conf).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
RequireTracking = Annotated[bool, typer.Option("--require-tracking", help="Fail if MLflow is unreachable.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where to compute; the best there is unless set.")
]
Split = Annotated[Literal["train", "valid", "test"], typer.Option(help="Which rows of the data.")]
Inputs = Annotated[
    list[Path] | None, typer.Argument(metavar="[INPUT]…", help="Pictures, folders of them; csv, jsonl or parquet.")
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Say at most so many tokens.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="Draw tokens, the more freely the higher; 0 takes the likeliest.")
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=0, help="Draw among the so many likeliest, 0 for all; items for a user.")
]
TopP = Annotated[float | None, typer.Option("--top-p", help="Draw among the likeliest of this probability together.")]
Beams = Annotated[int | None, typer.Option(min=1, help="Hypotheses of beam search, which draws nothing.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option("--length-penalty", help="Of beam search, 0 (short ones win) to about 1 (longer is no worse)."),
]
Seed = Annotated[int | None, typer.Option(help="Of the draws; the same seed says the same.")]
