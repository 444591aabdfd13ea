#!/usr/bin/env bash
# Five seeds of the small CNN on Fashion-MNIST, averaged; check.py compares with expected.json.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
runs="${DLRUN_RUNS:-$here/runs}"
epochs="${EPOCHS:-10}"

dlrun train --seeds 5 experiment=fashion_mnist_cnn "train.duration=$epochs epochs" data.split_seed=0 \
  name=fashion_five tracking.system_metrics=false --runs "$runs" --json > /dev/null
dlrun ensemble fashion_five name=fashion_average --runs "$runs" --json > /dev/null

python "$here/check.py" "$runs" "$here/expected.json"
