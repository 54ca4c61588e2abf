#!/usr/bin/env bash
# Mine with a Slurm array, without Ray between the machines: each task mines a part, and a last job joins them when all ended well.
# Every node must reach the images and --out under the same names. Give the same command again after a failure: what is finished
# stays, and the bytes are those of one job.
#
#   PARTS=64 pipelines/slurm_mine.sh --src coco/train2017 --out shards/ --num-shards 128
#
# SBATCH holds further options for the array's tasks, such as SBATCH='--partition cpu --time 4:00:00 --cpus-per-task 4'.
set -euo pipefail
parts=${PARTS:-}
out=""
words=("$@")
for at in "${!words[@]}"; do
    case "${words[$at]}" in
        --out) out=${words[$((at + 1))]:-} ;;
        --out=*) out=${words[$at]#--out=} ;;
        --part | --part=*) echo "error: --part is what this gives to each task; leave it out and set PARTS" >&2; exit 2 ;;
    esac
done
if ! [[ "$parts" =~ ^[1-9][0-9]*$ ]] || [ -z "$out" ]; then
    echo "error: expected PARTS=64 $0 --src IMAGES --out SHARDS [options of univip-stream mine]" >&2
    exit 2
fi
mine=$(printf '%q ' univip-stream mine "$@")
# With one CPU a task mines in its own process; with more, on a local Ray of its own.
task="if [ \"\${SLURM_CPUS_PER_TASK:-1}\" = 1 ]; then set -- --inline; else set -- --workers \"\$SLURM_CPUS_PER_TASK\"; fi
exec $mine --part \"\$SLURM_ARRAY_TASK_ID/$parts\" \"\$@\""
# shellcheck disable=SC2086 # several options
array=$(sbatch --parsable --job-name univip-mine --array "1-$parts" --requeue ${SBATCH:-} --wrap "$task")
joined=$(sbatch --parsable --job-name univip-join --dependency "afterok:${array%%;*}" --kill-on-invalid-dep yes \
    --wrap "$(printf '%q ' exec univip-stream join "$out")")
echo "parts: job ${array%%;*}, tasks 1 to $parts; they are joined by job ${joined%%;*}. If a task fails, give this command again"
