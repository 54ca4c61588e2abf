# What coco.sh, coco_plus.sh and imagenet.sh share; they source it. Mine, verify, train, judge, each resumable by itself.
#
# OUT            where shards and the run go
# GPUS           processes of torchrun on this machine; 1 trains without it           [the GPUs that nvidia-smi lists, or 1]
# PROBE          ImageNet, with train/<class> and val/<class>: what the run is judged on; without it nothing is judged
# DETECT         COCO, with train2017/, val2017/ and annotations/: Mask R-CNN is fine-tuned on it; needs PROBE too
# MINE_OPTIONS   more options of `univip-stream mine`
# TRAIN_OPTIONS  more options of `univip-stream train`, such as "--set accumulate=4" for fewer GPUs than the paper's
# DRY_RUN        1 prints the commands and runs none

gpus=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
[ "$gpus" -ge 1 ] || gpus=1

stage() { # stage "what" command... : say what runs, run it, say how long it took
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
            echo "error: $folder is no folder; $name must say where it is (see the head of $0)" >&2
            exit 1
        fi
    done
}

road() { # road RECIPE SOURCE... : the whole road
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
    stage "verify: the shards against their manifest" \
        univip-stream verify "$OUT/shards"
    stage "train: recipe $recipe" \
        "${train[@]}" --shards "$OUT/shards" --out "$OUT/run" --recipe "$recipe" ${TRAIN_OPTIONS:-}
    if [ -z "${PROBE:-}" ]; then
        printf '\nnot judged: PROBE names no ImageNet\n'
        return
    fi
    stage "judge: kNN in the features, beside the same network untrained" \
        univip-stream eval knn "$OUT/run" --train "$PROBE/train" --val "$PROBE/val" --untrained --out "$OUT/run/eval/knn.json"
    stage "judge: linear probe, the paper's protocol for this recipe" \
        univip-stream eval linear "$OUT/run" --train "$PROBE/train" --val "$PROBE/val" --out "$OUT/run/eval/linear.json"
    if [ -n "${DETECT:-}" ]; then
        local sets=()
        for part in train val; do
            sets+=("--$part-json" "$DETECT/annotations/instances_${part}2017.json" "--$part-images" "$DETECT/${part}2017")
        done
        stage "judge: Mask R-CNN R50-FPN on COCO, 1x" \
            "${judge[@]}" eval detect "$OUT/run" "${sets[@]}" --out "$OUT/run/eval/detect.json"
    fi
    stage "the run" univip-stream results "$OUT/run"
}
