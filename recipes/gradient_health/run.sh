#!/usr/bin/env bash
# The disease and the cure, on digits. Every run watches its gradients; check.py compares with expected.json.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
runs="${DLRUN_RUNS:-$here/runs}"
common=(train.diagnose=true hardware.device=cpu tracking.system_metrics=false schedule=constant --runs "$runs" --json)

train() { # NAME OVERRIDES…
  local name="$1"; shift
  dlrun train "name=$name" "$@" "${common[@]}" > /dev/null
}

deep=(model=mlp model.depth=12 model.width=64 model.dropout=0 optimizer.lr=0.001 "train.duration=8 epochs")
train sigmoid_mlp "${deep[@]}" model.norm=none model.activation=sigmoid model.init=xavier
train cured_mlp   "${deep[@]}" model.norm=batch model.activation=relu model.init=kaiming model.skip=true

plain=(model=resnet56 model.width=8 model.norm=batch optimizer=sgd optimizer.lr=0.05 "train.duration=4 epochs")
train plain_resnet   "${plain[@]}" model.skip=false
train skipped_resnet "${plain[@]}" model.skip=true

python "$here/check.py" "$runs" "$here/expected.json"
