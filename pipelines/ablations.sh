#!/usr/bin/env bash
# Train rows of the paper's ablation tables (7, 8 and 9) one after the other on the same shards, and print a table of results.
# If run again, it continues where it stopped: finished runs are kept.
#
#   bash pipelines/ablations.sh SHARDS OUT [TRAIN OPTIONS...]
#   ROWS="7a 7b 7c 7d 7e" SEEDS="0 1 2" PROBE=imagenet bash pipelines/ablations.sh shards/ runs/ablations --recipe coco
#
# ROWS   names of rows (`univip-stream train --help` lists them); default: Table 7
# SEEDS  seeds, with a run for each; default: 0
# PROBE  folder with train/<class> and val/<class>, to evaluate every run by kNN; default: no evaluation
# Rows of Table 8 (b) differ in their shards: "8b-ground-truth" is trained on the shards in SHARDS-ground-truth.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
shards=$1 out=$2
shift 2
rows=${ROWS:-7a 7b 7c 7d 7e}
seeds=${SEEDS:-0}

for row in $rows; do
    from=$shards
    if [ "$row" = 8b-ground-truth ]; then
        from=${shards%/}-ground-truth
        [ -e "$from" ] || { echo "error: $row is trained on shards mined with --proposals ground-truth; expected them in $from" >&2; exit 1; }
    fi
    for seed in $seeds; do
        run=$out/$row-seed$seed
        echo "== $row, seed $seed -> $run"
        univip-stream train --shards "$from" --out "$run" --ablation "$row" --seed "$seed" "$@"
        if [ -n "${PROBE:-}" ] && [ ! -e "$run/eval/knn.json" ]; then
            univip-stream eval knn "$run" --train "$PROBE/train" --val "$PROBE/val" --out "$run/eval/knn.json"
        fi
    done
done
univip-stream results "$out"
