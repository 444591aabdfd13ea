#!/usr/bin/env bash
# Five seeds of the small CNN on Fashion-MNIST, averaged, and one student of them; compared with expected.json.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
runs="${DLRUN_RUNS:-$here/runs}"
epochs="${EPOCHS:-10}"
quiet=(tracking.system_metrics=false --runs "$runs" --json)

dlrun train --seeds 5 experiment=fashion_mnist_cnn "model.channels=[16,32,64]" data.augment={} \
  "train.duration=$epochs epochs" data.split_seed=0 name=fashion_five "${quiet[@]}" > /dev/null
dlrun ensemble fashion_five name=fashion_average "${quiet[@]}" > /dev/null
dlrun compress fashion_average compression=distill model@compression.distill.student=cnn \
  "compression.distill.student.channels=[16,32,64]" \
  "compression.distill.duration=$epochs epochs" name=fashion_student "${quiet[@]}" > /dev/null

python "$here/../check_ensemble.py" "$runs" "$here/expected.json"
