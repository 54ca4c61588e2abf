#!/usr/bin/env bash
# UniVIP on COCO train2017: mine, verify, train 800 epochs with batches of 512, evaluate on ImageNet.
#
#   COCO=coco PROBE=imagenet bash pipelines/coco.sh        COCO holds train2017/; the other variables: pipelines/road.sh
#   COCO=coco DRY_RUN=1 bash pipelines/coco.sh             prints the commands
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-out/coco}
source "$here/road.sh"
need COCO "${COCO:-coco}/train2017"
run_stages coco "${COCO:-coco}/train2017"
cat <<'PAPER'

The paper's results after 800 epochs on COCO train2017, ResNet-50 (UniVIP; BYOL in brackets):
  ImageNet linear top-1            60.2 (57.8; 57.3 as the paper reproduced it)      Tables 1, 7
  COCO box / mask AP, R50-FPN 1x   40.8 / 36.8 (39.5 / 35.6)                         Table 2
The paper gives no kNN accuracy: compare it with that of BYOL after as many epochs on the same shards (train --ablation 7a).
PAPER
