#!/usr/bin/env bash
# A text CNN, a bidirectional LSTM and a linear layer on MiniLM's features, mixed; compared with expected.json.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
runs="${DLRUN_RUNS:-$here/runs}"
short=()
[ -z "${DURATION:-}" ] || short=("train.duration=$DURATION")

train() { dlrun train "$@" "${short[@]}" tracking.system_metrics=false --runs "$runs" --json > /dev/null; }
train experiment=sst2_bilstm name=mix_bilstm
train experiment=sst2_bilstm model=textcnn name=mix_textcnn
train experiment=sst2_minilm transfer=feature_extraction optimizer.lr=0.003 data.batch_size=64 \
  "train.duration=20 epochs" "train.evaluate_every=10 epochs" "train.save_every=10 epochs" name=mix_minilm
dlrun ensemble mix_bilstm mix_textcnn mix_minilm ensemble=weighted name=mix --runs "$runs" --json > /dev/null

python "$here/../check_ensemble.py" "$runs" "$here/expected.json"
