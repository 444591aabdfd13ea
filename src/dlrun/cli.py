"""The command line: reads argv, calls one verb, prints its error in two lines. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dlrun import __version__
from dlrun._cli_arguments import (
    AsJson,
    Beams,
    Components,
    ConfigDir,
    Device,
    Inputs,
    LengthPenalty,
    MaxTokens,
    OptionalRunName,
    Overrides,
    RequireTracking,
    RunName,
    RunNames,
    RunsFolder,
    Seed,
    Split,
    Temperature,
    TopK,
    TopP,
    complete_kinds,
    complete_names,
    complete_runs,
    complete_sought,
)
from dlrun.errors import DlrunError, Exit, did_you_mean

app = typer.Typer(
    name="dlrun", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train deep-learning models, and go on from there. Every command turns runs into runs.",
)  # fmt: skip


def _options(
    runs: Path | None,
    components: Path | None,
    config_dir: Path | None = None,
    as_json: bool = False,
    require_tracking: bool = False,
) -> Any:
    from dlrun.commands.train import Options
    from dlrun.registry import Registry, components_folder
    from dlrun.runs import runs_folder

    return Options(runs_folder(runs), Registry(components_folder(components)), config_dir, as_json, require_tracking)


# ---------------------------------------------------------------- verbs


@app.command()
def train(
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this run.", autocompletion=complete_runs)
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Train with this many seeds under one parent run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, one step, write nothing.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the composed config as YAML.")] = False,
    origin: Annotated[bool, typer.Option("--origin", help="With --print-config: where each value came from.")] = False,
    require_tracking: RequireTracking = False,
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """Train a model: dlrun train model=resnet20 data=files data.path=PATH."""
    options = _options(runs, components, config_dir, as_json, require_tracking)
    given = overrides or []
    if sum([resume is not None, seeds is not None, dry_run, print_config or origin]) > 1:
        raise DlrunError("--resume, --seeds, --dry-run and --print-config exclude each other", "use one of them")
    if print_config or origin:
        from dlrun.commands.print_config import print_config as show

        raise typer.Exit(show(given, options, origin=origin))
    from dlrun.commands import train as verb

    if dry_run:
        from dlrun.commands.dry_run import dry_run as rehearse

        raise typer.Exit(rehearse(given, options))
    if resume is not None:
        raise typer.Exit(verb.resume(resume, given, options))
    if seeds is not None:
        from dlrun.commands._seeds import train_seeds

        raise typer.Exit(train_seeds(seeds, given, options))
    raise typer.Exit(verb.train(given, options))


@app.command()
def sweep(
    overrides: Overrides = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Trials trained at a time, each with its share of cores or GPUs.")
    ] = 1,
    resume: Annotated[
        str | None, typer.Option(metavar="SWEEP", help="Go on with this sweep.", autocompletion=complete_runs)
    ] = None,
    join: Annotated[
        str | None, typer.Option(metavar="SWEEP", help="Train trials of a sweep that another machine began.")
    ] = None,
    require_tracking: RequireTracking = False,
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """Search settings: dlrun sweep 'optimizer.lr=tag(log, interval(1e-4,1e-1))' model=mlp,logistic."""
    from dlrun.commands import sweep as verb

    options = _options(runs, components, config_dir, as_json, require_tracking)
    if resume is not None and join is not None:
        raise DlrunError("--resume and --join are two ways to go on; choose one", "--join is for another machine")
    if join is not None:
        raise typer.Exit(verb.join(join, overrides or [], options, workers=workers))
    if resume is not None:
        raise typer.Exit(verb.resume(resume, overrides or [], options, workers=workers))
    raise typer.Exit(verb.sweep(overrides or [], options, workers=workers))


@app.command()
def ensemble(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN…|SWEEP] [OVERRIDES]…",
            help="Runs, RUN@STEP, the parent of --seeds or a sweep; ensemble=greedy …; see: dlrun list ensemble",
            autocompletion=complete_runs,
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, metavar="K", help="Of a sweep, the best so many.")] = None,
    device: Device = None,
    require_tracking: RequireTracking = False,
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """Make one better run of several: dlrun ensemble RUN RUN RUN ensemble=greedy."""
    from dlrun.commands.ensemble import ensemble as verb

    options = _options(runs, components, config_dir, as_json, require_tracking)
    raise typer.Exit(verb(given or [], options, top=top, device=device))


@app.command()
def evaluate(
    run: RunName,
    overrides: Overrides = None,
    split: Split = "test",
    device: Device = None,
    require_tracking: RequireTracking = False,
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """Metrics of a run on a split. With overrides on other data, which makes a run."""
    from dlrun.commands.evaluate import evaluate as verb

    options = _options(runs, components, config_dir, as_json, require_tracking)
    raise typer.Exit(verb(run, overrides or [], options, split=split, device=device))


@app.command()
def predict(
    run: RunName,
    inputs: Inputs = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text to answer or to go on with; several times, if so.")
    ] = None,
    format: Annotated[
        Literal["table", "csv", "jsonl"] | None, typer.Option(help="table unless FILE's ending says.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of stdout.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write masks and pictures with what was found there, too.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many rows only.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
) -> None:
    """Predictions for new pictures, table rows or texts. E.g. dlrun predict latest photos/ more.csv"""
    from dlrun.commands.predict import predict as verb

    options = _options(runs, components, as_json=as_json)
    generation = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                  "beams": beams, "length_penalty": length_penalty, "seed": seed}  # fmt: skip
    raise typer.Exit(verb(run, inputs or [], options, format=format, output=output, out=out, limit=limit,
                          device=device, prompts=prompt or [], generation=generation))  # fmt: skip


@app.command()
def chat(
    run: RunName,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before all else.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    device: Device = None,
    runs: RunsFolder = None,
    components: Components = None,
) -> None:
    """Talk with a run. /reset forgets what was said, Ctrl-C stops an answer, Ctrl-D or /quit leaves."""
    from dlrun.commands.chat import chat as verb

    generation = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    raise typer.Exit(verb(run, _options(runs, components), system=system, device=device, generation=generation))


@app.command()
def compress(
    run: OptionalRunName = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this compression.", autocompletion=complete_runs)
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(metavar="DROP", help="Find the strongest setting that costs at most this: 0.01, or relative 1%."),
    ] = None,
    device: Device = None,
    require_tracking: RequireTracking = False,
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """Make a run smaller and faster, and prove it: dlrun compress RUN compression=[prune_channels,quantize_static]"""
    from dlrun.commands import compress as verb

    options = _options(runs, components, config_dir, as_json, require_tracking)
    if resume is not None:
        if run or max_drop is not None or device:
            raise DlrunError("--resume goes on with what was asked for then", f"dlrun compress --resume {resume}")
        raise typer.Exit(verb.resume(resume, options))
    if run is None:
        raise DlrunError("compress needs a run", "dlrun compress RUN compression=METHOD; see: dlrun runs")
    raise typer.Exit(verb.compress(run, overrides or [], options, max_drop=max_drop, device=device))


@app.command()
def export(
    run: RunName,
    format: Annotated[
        Literal["onnx", "torch", "safetensors", "transformers", "mlflow"], typer.Option(help="What others read.")
    ] = "onnx",
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder (NAME-FORMAT).")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask the file for all of validation; exit 7 if it differs.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    license: Annotated[str, typer.Option(metavar="NAME", help="For the model card, e.g. apache-2.0.")] = "unknown",
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
) -> None:
    """A run's model as a file for others, with a model card: dlrun export latest --format onnx --check"""
    from dlrun.commands.export import export as verb

    options = _options(runs, components, as_json=as_json)
    raise typer.Exit(verb(run, options, format=format, output=output, check=check, force=force, license=license))


@app.command("runs")
def list_runs(
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 for all.")] = 20,
    as_json: AsJson = False,
    runs: RunsFolder = None,
) -> None:
    """What was run, newest first."""
    from dlrun.commands.runs_list import list_runs as verb

    raise typer.Exit(verb(_options(runs, None, as_json=as_json), limit=limit))


@app.command()
def compare(chosen: RunNames, as_json: AsJson = False, runs: RunsFolder = None) -> None:
    """Metrics and config differences of several runs."""
    from dlrun.commands.compare import compare as verb

    raise typer.Exit(verb(chosen, _options(runs, None, as_json=as_json)))


@app.command()
def lineage(run: RunName, as_json: AsJson = False, runs: RunsFolder = None) -> None:
    """What a run was made from, and what from it."""
    from dlrun.commands.lineage import lineage as verb

    raise typer.Exit(verb(run, _options(runs, None, as_json=as_json)))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen, on this machine only.")] = 5000,
    runs: RunsFolder = None,
) -> None:
    """MLflow's pages over the runs, until Ctrl-C."""
    from dlrun.commands.ui import ui as verb

    raise typer.Exit(verb(_options(runs, None), port=port))


@app.command("list")
def list_all(
    kind: Annotated[str | None, typer.Argument(help="model, data, task, …", autocompletion=complete_kinds)] = None,
    as_json: AsJson = False,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """What there is to choose from."""
    from dlrun.commands.list_components import list_components
    from dlrun.registry import Registry, components_folder

    raise typer.Exit(list_components(kind, Registry(components_folder(components)), config_dir, as_json=as_json))


@app.command()
def show(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="model, data, …", autocompletion=complete_kinds)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Choice, component.", autocompletion=complete_names)],
    as_json: AsJson = False,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """What a choice is, and what can be set: dlrun show model resnet20."""
    from dlrun.commands.show import show as verb
    from dlrun.registry import Registry, components_folder

    raise typer.Exit(verb(kind, name, Registry(components_folder(components)), config_dir, as_json=as_json))


@app.command()
def find(
    what: Annotated[str, typer.Argument(metavar="lr|batch-size", autocompletion=complete_sought)],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the curve of lr into this file.")] = None,
    as_json: AsJson = False,
    runs: RunsFolder = None,
    components: Components = None,
    config_dir: ConfigDir = None,
) -> None:
    """Find a learning rate or a batch size for a run, by short trials."""
    from dlrun.commands.find import find as verb

    raise typer.Exit(verb(what, overrides or [], _options(runs, components, config_dir, as_json), output=output))


@app.command()
def doctor(as_json: AsJson = False, runs: RunsFolder = None) -> None:
    """Check the machine, the runs folder, the tracking store and every checkpoint."""
    from dlrun.commands.doctor import doctor as verb

    raise typer.Exit(verb(_options(runs, None, None, as_json)))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A new folder, or this one.")] = Path("."),
) -> None:
    """Make a small project with a model, data and task of your own."""
    from dlrun.commands.init import init as verb

    raise typer.Exit(verb(folder))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dlrun {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train deep-learning models, and go on from there. Every command turns runs into runs."""


# ---------------------------------------------------------------- errors


def main() -> None:
    """Run the command line; every error that is the user's to mend is one or two lines on stderr."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    try:
        code = app(standalone_mode=False)
    except DlrunError as error:
        code = _say(error.message, error.hint, error.code)
    except typer.Abort:
        code = Exit.INTERRUPTED
    except KeyboardInterrupt:
        code = _say("interrupted", "", Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    except Exception as error:
        if not hasattr(error, "format_message"):  # not of the argument parser: a bug of ours, shown in full
            raise
        code = _usage(error)
    sys.exit(int(code or 0))


def _usage(error: Any) -> int:
    if not error.format_message():  # no arguments at all: the help was printed
        return int(Exit.OK)
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    verbs = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
    if error.format_message().startswith("No such command"):
        return _say(f"no command '{given}'", did_you_mean(given, verbs), Exit.USAGE)
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    return _say(
        message[0].lower() + message[1:], "see: dlrun --help" if not given else f"see: dlrun {given} --help", Exit.USAGE
    )


def _say(message: str, hint: str, code: int) -> int:
    print(f"error: {message}" + (f"\n  hint: {hint}" if hint else ""), file=sys.stderr)
    return int(code)
