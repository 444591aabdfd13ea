"""Compares the newest ensemble of a folder of runs, and the newest student of one, with an expected.json.

python check_ensemble.py RUNS expected.json     only the numbers that expected.json names are looked at
"""

import json
import sys
from pathlib import Path


def newest(runs: Path, verb: str) -> Path | None:
    """The folder of the finished run of this verb that was made last."""
    found = []
    for folder in runs.glob("*/artifacts"):
        record = json.loads((folder / "run.json").read_text())
        if record["verb"] == verb and (folder / "result.json").exists():
            found.append((record["created"], folder))
    return max(found)[1] if found else None


def numbers(runs: Path) -> dict[str, float]:
    """What the report says of the ensemble, and how much of its gain a student has kept."""
    folder = newest(runs, "ensemble")
    if folder is None:
        sys.exit(f"{runs}: no ensemble")
    report = json.loads((folder / "report" / "ensemble.json").read_text())
    members, ensemble = report["members"], report["ensemble"]
    mean = {name: sum(row[name] for row in members) / len(members) for name in ("value", "nll")}
    found = {
        "value": ensemble["value"],
        "gain": ensemble["value"] - mean["value"],
        "over_best_member": ensemble["value"] - max(row["value"] for row in members),
        "nll_ratio": ensemble["nll"] / mean["nll"],
        "ece_calibrated": ensemble["ece_calibrated"],
    }
    if (student := newest(runs, "compress")) is not None:
        taught = json.loads((student / "result.json").read_text())["goal"]["value"]
        found["kept_of_gain"] = (taught - mean["value"]) / found["gain"]
    return found


def main() -> None:
    runs, expected = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    found, wrong = numbers(runs), 0
    for name, (low, high) in expected.items():
        fine = low <= found[name] <= high
        wrong += not fine
        print(f"{name:<18} {found[name]:.4f}  {'as expected' if fine else f'EXPECTED {low} to {high}'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
