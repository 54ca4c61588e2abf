# The stages that coco.sh, coco_plus.sh and imagenet.sh share: mine, verify, train and evaluate. Each stage can be resumed.
#
# OUT            folder of the shards and the run
# GPUS           number of torchrun's processes on this machine; 1 does without it    [the GPUs that nvidia-smi lists, or 1]
# PROBE          folder of ImageNet, with train/<class> and val/<class>, to evaluate the run on; without it, nothing is evaluated
# DETECT         folder of COCO, with train2017/, val2017/ and annotations/, to fine-tune Mask R-CNN on; it needs PROBE too
# MINE_OPTIONS   more options of `univip-stream mine`
# TRAIN_OPTIONS  more options of `univip-stream train`, such as "--set accumulate=4" for fewer GPUs than the paper's
# DRY_RUN        1 prints the commands without running them

gpus=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
[ "$gpus" -ge 1 ] || gpus=1

stage() { # stage "what" command... : print what runs, run it, print how long it took
    local what=$1 began=$SECONDS
    shift
    printf '\n== %s\n   %s\n' "$what" "$*"
    [ "${DRY_RUN:-0}" = 1 ] && return
    "$@"
    printf '   (%d s)\n' $((SECONDS - began))
}

need() { # need VARIABLE FOLDER... : stop before any work if a folder is missing
    local name=$1 folder
    shift
    for folder in "$@"; do
        if [ ! -d "$folder" ]; then
            echo "error: $folder is not a folder; expected $name to name the folder that contains it (see the head of $0)" >&2
            exit 1
        fi
    done
}

run_stages() { # run_stages RECIPE SOURCE... : all stages for the images of the sources
    local recipe=$1 sources=() train=(univip-stream train) judge=(univip-stream)
    shift
    if [ -n "${DETECT:-}" ]; then need DETECT "$DETECT/train2017" "$DETECT/val2017" "$DETECT/annotations"; fi
    if [ -n "${PROBE:-}" ]; then need PROBE "$PROBE/train" "$PROBE/val"; fi
    for source in "$@"; do sources+=(--src "$source"); done
    if [ "$gpus" -gt 1 ]; then
        judge=(torchrun --standalone --nproc-per-node "$gpus" -m univip_stream)
        train=("${judge[@]}" train)
    fi
    stage "mine: region proposals, written as WebDataset shards" \
        univip-stream mine "${sources[@]}" --out "$OUT/shards" ${MINE_OPTIONS:-}
    stage "verify: check the shards against their manifest" \
        univip-stream verify "$OUT/shards"
    stage "train: recipe $recipe" \
        "${train[@]}" --shards "$OUT/shards" --out "$OUT/run" --recipe "$recipe" ${TRAIN_OPTIONS:-}
    if [ -z "${PROBE:-}" ]; then
        printf '\nthe run is not evaluated: PROBE does not name a folder of ImageNet\n'
        return
    fi
    stage "evaluate: kNN on the features, and on those of the same network untrained" \
        univip-stream eval knn "$OUT/run" --train "$PROBE/train" --val "$PROBE/val" --untrained --out "$OUT/run/eval/knn.json"
    stage "evaluate: linear probe, with the paper's protocol for this recipe" \
        univip-stream eval linear "$OUT/run" --train "$PROBE/train" --val "$PROBE/val" --out "$OUT/run/eval/linear.json"
    if [ -n "${DETECT:-}" ]; then
        local sets=()
        for part in train val; do
            sets+=("--$part-json" "$DETECT/annotations/instances_${part}2017.json" "--$part-images" "$DETECT/${part}2017")
        done
        stage "evaluate: Mask R-CNN R50-FPN on COCO, 1x schedule" \
            "${judge[@]}" eval detect "$OUT/run" "${sets[@]}" --out "$OUT/run/eval/detect.json"
    fi
    stage "results of the run" univip-stream results "$OUT/run"
}
