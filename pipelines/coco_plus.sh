#!/usr/bin/env bash
# UniVIP on COCO+ (train2017 and unlabeled2017): mine, verify, train 800 epochs with batches of 512, evaluate on ImageNet.
#
#   COCO=coco PROBE=imagenet bash pipelines/coco_plus.sh   COCO holds train2017/ and unlabeled2017/; the rest: pipelines/road.sh
#   COCO=coco DRY_RUN=1 bash pipelines/coco_plus.sh        prints the commands
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-out/coco-plus}
source "$here/road.sh"
need COCO "${COCO:-coco}/train2017" "${COCO:-coco}/unlabeled2017"
run_stages coco-plus "${COCO:-coco}/train2017" "${COCO:-coco}/unlabeled2017"
cat <<'PAPER'

The paper's results after 800 epochs on COCO+, ResNet-50:
  ImageNet linear top-1            63.0                   Table 1
  COCO box / mask AP, R50-FPN 1x   41.1 / 37.1            Table 2
The paper gives no kNN accuracy: compare it with that of BYOL after as many epochs on the same shards (train --ablation 7a).
PAPER
