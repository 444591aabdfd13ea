"""The model card of an export: README.md with Hugging Face's YAML header, written from the run's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dlrun import runs
from dlrun.commands import _compress_proof as proof
from dlrun.commands import _reading as reading
from dlrun.commands._terminal import number
from dlrun.contracts import hub_kind
from dlrun.decoding import Generates
from dlrun.errors import DlrunError

_BY_DATA = {"image": "image", "text": "text", "table": "tabular"}
_FILES = {
    "onnx": "model.onnx",
    "torch": "model.pt2",
    "safetensors": "model.safetensors",
    "transformers": "model.safetensors",
}
_FACTS = (
    "optimizer.name",
    "optimizer.lr",
    "schedule.name",
    "train.duration",
    "train.precision",
    "data.batch_size",
    "seed",
)

_NO_SEARCH = (
    "The graph is the forward pass: all tokens so far go in, and the logits of the token after each of them come out "
    "(teacher forcing). It is not the step-wise decoder: it keeps no state between calls, and the search that says "
    "texts (greedy, beams, sampling) is not in it."
)


def text(run: runs.Run, predictor: Any, facts: Mapping[str, Any]) -> str:
    """All of README.md. facts: what export.json holds."""
    config, result = reading.config_of(run), reading.result_of(run)
    parts = [
        _header(run, predictor, config, result, facts),
        f"# {_name(run, config)}",
        _what(run, predictor, config),
        *_use(predictor, facts),
        *_tensors(predictor, facts),
        *_data(predictor, config),
        *_metrics(result),
        *_compression(result),
        *_history(run, config, result, predictor),
        *_limits(predictor, facts),
        f"## Licence\n\n{_licence(facts['license'])}",
        *_origin(run, predictor, facts),
    ]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- the header


def _header(
    run: runs.Run, predictor: Any, config: Mapping[str, Any], result: Mapping[str, Any], facts: Mapping[str, Any]
) -> str:
    kind, data = _kind(predictor), config.get("data", {})
    values = {name: value for name, value in (result.get("metrics") or {}).items() if _is_number(value)}
    splits = [split for split in ("test", "valid") if any(name.startswith(f"{split}/") for name in values)]
    dataset = str(data.get("path") if data.get("name") == "hub" else data.get("name", "unknown"))
    found = [
        {
            "task": {"type": kind},
            "dataset": {"name": dataset, "type": dataset, "split": split},
            "metrics": [
                {"type": name.partition("/")[2], "name": name, "value": value}
                for name, value in values.items()
                if name.startswith(f"{split}/")
            ],
        }
        for split in splits
    ]
    header: dict[str, Any] = {
        "license": facts["license"],
        "library_name": "transformers" if facts["format"] == "transformers" else "dlrun",
        "tags": ["dlrun", facts["format"]],
        "pipeline_tag": kind,
        **({"datasets": [dataset]} if data.get("name") == "hub" else {}),
        "metrics": sorted({name.partition("/")[2] for name in values}),
        "model-index": [{"name": _name(run, config), "results": found}],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---"


def _kind(predictor: Any) -> str:
    """What the hub calls it; "other" where that depends on what goes in, and it has no word for that."""
    kind, given = hub_kind(predictor.task), _BY_DATA.get(str(predictor.spec.assets.get("kind")))
    return kind if "{}" not in kind else kind.format(given) if given else "other"


def _name(run: runs.Run, config: Mapping[str, Any]) -> str:
    made = f"{config.get('model', {}).get('name', 'model')} on {config.get('data', {}).get('name', 'data')}"
    return run.record.name or made


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value and abs(value) != float("inf")


# ---------------------------------------------------------------- the text


def _what(run: runs.Run, predictor: Any, config: Mapping[str, Any]) -> str:
    model, task = config.get("model", {}), config.get("task", {})
    count = reading.result_of(run).get("parameters")
    size = f" with {count:,} parameters" if isinstance(count, int) else ""
    settings = ", ".join(f"{name}={value}" for name, value in model.items() if name != "name" and value is not None)
    return (
        f"A `{model.get('name')}`{size} for {str(task.get('name')).replace('_', ' ')}, "
        f"made by `dlrun {run.record.verb}`." + (f"\n\nArchitecture: `{settings}`." if settings else "")
    )


def _use(predictor: Any, facts: Mapping[str, Any]) -> Iterator[str]:
    format = facts["format"]
    names = [one["name"] for one in facts.get("inputs", ())]
    if format == "onnx":
        given = ", ".join(f'"{name}": {name}' for name in names)
        code = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{_FILES[format]}")\n'
        code += f"outputs = session.run(None, {{{given}}})  # NumPy arrays"
    elif format == "torch":
        given = ", ".join(f"{name}={name}" for name in names)
        code = f'import torch\n\nmodel = torch.export.load("{_FILES[format]}").module()  # pickle: trust it first\n'
        code += f"outputs = model({given})"
    elif format == "safetensors":
        code = (
            'from safetensors.torch import load_file\n\nweights = load_file("model.safetensors")  # names: config.json'
        )
    elif format == "transformers":
        code = f'import transformers\n\nmodel = transformers.{facts["auto_class"]}.from_pretrained(".")\n'
        code += 'tokenizer = transformers.AutoTokenizer.from_pretrained(".")'
        if facts.get("head"):
            code += (
                "\n# The class is told by a linear layer, head.weight and head.bias of head.safetensors, from the\n"
                f"# last hidden states of the text's tokens, pooled: {getattr(predictor.model, 'pooling', 'mean')}."
            )
    else:
        code = 'import mlflow\n\nmodel = mlflow.pyfunc.load_model(".")  # needs dlrun\nrows = model.predict(table)'
    yield f"## Use\n\n```python\n{code}\n```"


def _tensors(predictor: Any, facts: Mapping[str, Any]) -> Iterator[str]:
    if "inputs" not in facts:
        return
    lines = ["## Inputs and outputs", "", "| | name | type | shape |", "|---|---|---|---|"]
    for what in ("inputs", "outputs"):
        for one in facts[what]:
            lines.append(f"| {what[:-1]} | `{one['name']}` | {one['type']} | {', '.join(map(str, one['shape']))} |")
    if facts["preprocessing"] == "in the file":
        said = "Inputs are as they are stored (pixels 0 to 255, plain numbers, tokens): normalisation is in the file."
    else:
        said = "Inputs are to be prepared as spec.json beside it says (mean and deviation): that is not in the file."
    lines += ["", said]
    if not facts["finished"]:
        lines += [
            "",
            "The outputs come before the model's answers are chosen from them (peaks, or suppression by overlap).",
        ]
    if isinstance(predictor.task, Generates):
        lines += ["", _NO_SEARCH]
    if "opset" in facts:
        lines += ["", f"ONNX opset {facts['opset']}."]
    agreed = facts["agreement"]
    lines += [
        "",
        f"Compared with the model at {agreed['compared']}: the outputs differ by at most {agreed['worst']:.2g} "
        f"({agreed['allowed']:.2g} was allowed).",
    ]
    yield "\n".join(lines)


def _data(predictor: Any, config: Mapping[str, Any]) -> Iterator[str]:
    data, spec = config.get("data", {}), predictor.spec
    where = f" (`{Path(str(data['path'])).name}`)" if data.get("path") else ""
    sizes = ", ".join(f"{name} {value:,}" for name, value in sorted(spec.sizes.items()))
    said = f"## Data\n\n`{data.get('name')}`{where}: {', '.join(spec.inputs)} to {spec.target}; {sizes}."
    if spec.labels:
        shown = ", ".join(spec.labels[:20]) + (f", … ({len(spec.labels)} in all)" if len(spec.labels) > 20 else "")
        said += f"\n\nLabels, in order: {shown}."
    yield said


def _metrics(result: Mapping[str, Any]) -> Iterator[str]:
    values = result.get("metrics") or {}
    by_split: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        split, _, metric = name.partition("/")
        by_split.setdefault(metric, {})[split] = value
    splits = [split for split in ("valid", "test") if any(split in row for row in by_split.values())]
    if not splits:
        yield "## Metrics\n\nNone were measured."
        return
    lines = ["## Metrics", "", f"| | {' | '.join(splits)} |", f"|---|{'---|' * len(splits)}"]
    for metric, row in by_split.items():
        cells = [number(row[split]) if _is_number(row.get(split)) else "" for split in splits]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    goal = result.get("goal") or {}
    if goal.get("name") and "ratios" not in result:
        lines += ["", f"The weights are those of the best validation {goal['name']}, of one run and one seed."]
    yield "\n".join(lines)


def _compression(result: Mapping[str, Any]) -> Iterator[str]:
    """What was done to the run it was made from, and what that cost; nothing of a run that was not compressed."""
    if "ratios" not in result:
        return
    before, after, goal = result["before"], result["after"], result["goal"]
    steps = [f"`{step['name']}` ({_settings(step['options'])})" for step in result["steps"]]
    lines = [
        "## Compression",
        "",
        f"By {', then '.join(steps)}.",
        "",
        "| | before | after | change |",
        "|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in proof.compared(before, after, result["ratios"])]
    notes = [f"{remark[0].upper()}{remark[1:]}." for remark in result["remarks"]]
    if "device" in after:
        notes.insert(0, f"Both were timed in turns, on {after['device']} with {after['threads']} threads.")
    if interval := after["goal_interval"]:
        low, high = map(number, interval)
        notes.insert(0, f"95 % interval of {goal['split']}/{goal['name']} afterwards: {low} to {high}.")
    yield "\n".join([*lines, "", *notes])


def _settings(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items() if value is not None) or "as it comes"


def _history(run: runs.Run, config: Mapping[str, Any], result: Mapping[str, Any], predictor: Any) -> Iterator[str]:
    """How the weights were trained: of a compressed run, how those were that it began with, and what it took itself."""
    if run.record.verb != "compress":
        yield from _training(run, config, result, getattr(predictor, "step", None), "")
        return
    seconds = result.get("seconds")
    took = f"Compressing took {seconds:.0f} s, with all training in it" if _is_number(seconds) else "It was compressed"
    trained = _before_compression(run)
    if trained is None:
        yield f"## Training\n\n{took}; the run that it began with is not here to be asked."
        return
    own = reading.result_of(trained)
    begun = f"{took}; what follows is of run {trained.short_id} (`dlrun {trained.record.verb}`), with which it began."
    yield from _training(trained, reading.config_of(trained), own, own.get("best_step"), f"{begun}\n\n")


def _before_compression(run: runs.Run) -> runs.Run | None:
    """The first run before it that is no compression."""
    try:
        while run.record.verb == "compress":
            run = runs.find(run.folder.parents[1], run.record.parents[0])
    except DlrunError:
        return None
    return run


def _training(
    run: runs.Run, config: Mapping[str, Any], result: Mapping[str, Any], step: int | None, begun: str
) -> Iterator[str]:
    """begun: a paragraph that stands before the facts."""
    facts = [(name, _at(config, name)) for name in _FACTS]
    lines = [f"- {name}: {value}" for name, value in facts if value is not None]
    lines += [f"- steps: {result['step']:,}, weights of step {step:,}"] if "step" in result and step is not None else []
    lines += [f"- time: {result['seconds']:.0f} s"] if _is_number(result.get("seconds")) else []
    try:
        machine = runs.read_json(run.folder / "environment.json")
        hardware = machine["hardware"]
        gpus = ", ".join(str(gpu.get("name", gpu) if isinstance(gpu, dict) else gpu) for gpu in hardware["gpus"])
        lines.append(f"- hardware: {gpus or hardware['processor']}, {hardware['cores']} cores")
        lines.append("- versions: " + ", ".join(f"{name} {value}" for name, value in machine["versions"].items()))
    except (DlrunError, KeyError, TypeError):
        pass  # an old or foreign run: the card says what is known
    yield f"## Training\n\n{begun}" + "\n".join(lines)
    energy = result.get("energy") or {}
    if _is_number(energy.get("joules")):
        said = f"{energy['joules'] / 3600:,.2f} Wh ({energy['joules']:,.0f} J), by {energy.get('method', 'a counter')}."
    else:
        said = f"Not known ({energy.get('method', 'it was not measured')})."
    yield f"## Energy\n\nOf training: {said}"


def _at(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _limits(predictor: Any, facts: Mapping[str, Any]) -> Iterator[str]:
    lines = ["- It was scored on data of the kind named above; on other data nothing is promised."]
    lines.append(
        "- Probabilities are those of the model as it is; how well they are calibrated is `ece` above, if it is there."
    )
    sizes = predictor.spec.sizes
    longest = {name: sizes[name] for name in ("context", "length", "target_length") if name in sizes}
    if longest:
        lines.append(
            "- Trained on at most: " + ", ".join(f"{name} {value:,} tokens" for name, value in longest.items()) + "."
        )
    static = [one for one in facts.get("inputs", ()) if one["name"] in ("tokens", "source")]
    if any(isinstance(one["shape"][1], int) for one in static):
        lines.append("- This file takes texts of one length alone: pad them with 0 to the one above.")
    lines.append("- Bias against groups was not measured.")
    yield "## Limits\n\n" + "\n".join(lines)


def _licence(given: str) -> str:
    if given == "unknown":
        return (
            "Not stated. Whoever publishes the model fills it in (`dlrun export --license NAME`); the data has one too."
        )
    return f"`{given}`, as stated by whoever exported it; the data has one too."


def _origin(run: runs.Run, predictor: Any, facts: Mapping[str, Any]) -> Iterator[str]:
    lines = [f"- run {run.id} (`dlrun {run.record.verb}`)"]
    lines += [f"- made from {', '.join(run.record.parents)}"] if run.record.parents else []
    lines += [f"- SHA-256 of the run's weights: `{digest}`" for digest in _digests(run, predictor)]
    if check := facts.get("check"):
        lines.append(
            f"- checked on all of {check['split']}: {check['metric']} {number(check['exported'])} of the file, "
            f"{number(check['model'])} of the model"
        )
    yield "## Where it comes from\n\n" + "\n".join(lines)


def _digests(run: runs.Run, predictor: Any) -> Iterator[str]:
    """Of the weights, as the checkpoint's manifest states it."""
    own = getattr(predictor, "run", run)
    step = getattr(predictor, "step", None)
    if step is None:
        return
    try:
        manifest = runs.read_json(own.checkpoints / f"{step:08d}" / "MANIFEST.json")
        yield manifest["files"]["weights.safetensors"]["sha256"]
    except (DlrunError, KeyError, TypeError):
        return
