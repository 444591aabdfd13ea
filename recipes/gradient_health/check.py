"""Compares the newest run of each name with expected.json: its verdict, and the accuracy it must or must not reach."""

import json
import sys
from pathlib import Path


def main() -> None:
    runs, expected = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    newest: dict[str, Path] = {}
    for folder in sorted(
        runs.glob("*/artifacts"), key=lambda path: json.loads((path / "run.json").read_text())["created"]
    ):
        newest[json.loads((folder / "run.json").read_text())["name"]] = folder
    wrong = 0
    for name, wanted in expected.items():
        verdict = json.loads((newest[name] / "report" / "gradients.json").read_text())["verdict"]
        accuracy = json.loads((newest[name] / "result.json").read_text())["metrics"]["test/accuracy"]
        low, high = wanted["accuracy"]
        fine = verdict in wanted["verdict"] and low <= accuracy <= high
        wrong += not fine
        print(f"{name:<15} {verdict:<10} accuracy {accuracy:.3f}  {'as expected' if fine else f'EXPECTED {wanted}'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
