#!/usr/bin/env bash
# Five seeds of the small CNN on Fashion-MNIST, averaged, and one student of them; compared with expected.json.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
runs="${DLRUN_RUNS:-$here/runs}"
quiet=(tracking.system_metrics=false --runs "$runs" --json)
net=(convolutions=1 head_width=128 dropout=0)

dlrun train --seeds 5 experiment=fashion_mnist_cnn "${net[@]/#/model.}" optimizer.weight_decay=0 \
  schedule=constant optimizer.lr=0.002 "train.duration=${EPOCHS:-8} epochs" data.split_seed=0 name=fashion_five \
  "${quiet[@]}" > /dev/null
dlrun ensemble fashion_five name=fashion_average "${quiet[@]}" > /dev/null
dlrun compress fashion_average compression=distill model@compression.distill.student=cnn \
  "${net[@]/#/compression.distill.student.}" "compression.distill.duration=${EPOCHS:-12} epochs" \
  compression.distill.temperature=2 schedule=one_cycle optimizer.lr=0.004 name=fashion_student "${quiet[@]}" > /dev/null

python "$here/../check_ensemble.py" "$runs" "$here/expected.json"
