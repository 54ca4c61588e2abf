#!/usr/bin/env bash
# All stages on a laptop: draw and collect images, mine them on a local Ray, check the shards, train UniVIP, evaluate it.
# It needs two cores, no GPU and a few minutes. If run again, it continues where it stopped. `make demo` runs it.
#
#   bash pipelines/demo.sh [OUT]        OUT defaults to out/demo
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-out/demo}

stage() { # stage "what" command... : print what runs, run it, print how long it took
    local what=$1 began=$SECONDS
    shift
    printf '\n== %s\n   %s\n' "$what" "$*"
    "$@"
    printf '   (%d s)\n' $((SECONDS - began))
}

stage "images: photographs that scikit-image ships, and scenes drawn with known classes" \
    python "$here/demo_images.py" "$out/images"
stage "mine: region proposals on a local Ray, written as WebDataset shards" \
    univip-stream mine --src "$out/images/mine" --out "$out/shards" --num-shards 4
stage "verify: check the shards against their manifest" \
    univip-stream verify "$out/shards"
stage "train: UniVIP on the shards" \
    univip-stream train --shards "$out/shards/<000..003>.tar" --out "$out/run" --recipe cpu-demo
stage "evaluate: kNN on scenes that were not in the training, by the shape of their objects" \
    univip-stream eval knn "$out/run" --train "$out/images/probe/train" --val "$out/images/probe/val" \
    --untrained --out "$out/knn.json"
python "$here/demo_report.py" "$out"
