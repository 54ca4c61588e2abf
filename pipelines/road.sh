# What coco.sh, coco_plus.sh and imagenet.sh share; they source it. Mine, verify, train, judge, each resumable by itself.
#
# OUT            where shards and the run go
# GPUS           processes of torchrun on this machine; 1 trains without it           [the GPUs that nvidia-smi lists, or 1]
# PROBE          ImageNet, with train/<class> and val/<class>: what the run is judged on; without it nothing is judged
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
    local recipe=$1 sources=() train=(univip-stream train)
    shift
    if [ -n "${PROBE:-}" ]; then need PROBE "$PROBE/train" "$PROBE/val"; fi
    for source in "$@"; do sources+=(--src "$source"); done
    if [ "$gpus" -gt 1 ]; then train=(torchrun --standalone --nproc-per-node "$gpus" -m univip_stream train); fi
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
    if univip-stream eval linear --help >/dev/null 2>&1; then
        stage "judge: linear probe" \
            univip-stream eval linear "$OUT/run" --train "$PROBE/train" --val "$PROBE/val" --out "$OUT/run/eval/linear.json"
    fi
    stage "the run" univip-stream results "$OUT/run"
}
