"""Compares the newest ensemble's report with expected.json: gain, negative log-likelihood, calibration."""

import json
import sys
from pathlib import Path


def main() -> None:
    runs, expected = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    reports = sorted(runs.glob("*/artifacts/report/ensemble.json"), key=lambda path: path.stat().st_mtime)
    report = json.loads(reports[-1].read_text())
    members, ensemble = report["members"], report["ensemble"]
    found = {
        "gain": report["gain"]["over_mean_member"]["value"],
        "nll_ratio": ensemble["nll"] / (sum(row["nll"] for row in members) / len(members)),
        "ece_calibrated": ensemble["ece_calibrated"],
    }
    wrong = 0
    for name, (low, high) in expected.items():
        fine = low <= found[name] <= high
        wrong += not fine
        print(f"{name:<15} {found[name]:.4f}  {'as expected' if fine else f'EXPECTED {low} to {high}'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
