#!/usr/bin/env bash
# UniVIP on ImageNet's training images: mine, verify, train 200 or 300 epochs with batches of 4096, evaluate on ImageNet.
#
#   IMAGENET=imagenet EPOCHS=300 bash pipelines/imagenet.sh   IMAGENET holds train/<class>/ and val/<class>/; EPOCHS 200 or 300
#   IMAGENET=imagenet DRY_RUN=1 bash pipelines/imagenet.sh    prints the commands; the other variables: pipelines/road.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
epochs=${EPOCHS:-200}
case $epochs in
200 | 300) ;;
*) echo "error: EPOCHS is $epochs; expected 200 or 300 (other lengths: TRAIN_OPTIONS=\"--epochs N\")" >&2 && exit 2 ;;
esac
IMAGENET=${IMAGENET:-imagenet}
OUT=${OUT:-out/imagenet-$epochs}
PROBE=${PROBE-$IMAGENET}
source "$here/road.sh"
need IMAGENET "$IMAGENET/train"
run_stages "imagenet-$epochs" "$IMAGENET/train"
cat <<'PAPER'

The paper's results on ImageNet, ResNet-50 (BYOL in brackets):
                                   200 epochs             300 epochs
  linear top-1                     73.1 (70.6)            74.2                   Table 1
  COCO box / mask AP, R50-FPN 1x   41.6 / 37.6            42.2 / 38.2            Table 4
The paper gives no kNN accuracy.
PAPER
