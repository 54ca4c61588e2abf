#!/usr/bin/env bash
# Train on several machines under Slurm, with one torchrun on each node, which uses all its GPUs.
# Every node must reach the run folder and the shards under the same path. A job that was preempted or lost a node is queued again
# and continues from its checkpoint; a job that ran out of time continues when the same command is given again.
#
#   sbatch --nodes 4 --gpus-per-node 8 pipelines/slurm.sh --shards shards/ --out runs/coco --recipe coco
#SBATCH --job-name=univip-stream
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: this runs under Slurm; expected: sbatch [its options] $0 [options of univip-stream train]" >&2
    exit 2
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
status=0
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29500}" \
    -m univip_stream train "$@" || status=$?
echo "univip-stream train ended with status $status" >&2
exit "$status"
