#!/bin/bash
# sbatch examples/deploy/slurm-batch.sh: jobs.jsonl in this folder, a task a GPU
#SBATCH --job-name=ltx2rt
#SBATCH --ntasks=8
#SBATCH --gpus-per-task=1
#SBATCH --requeue
srun bash -c 'exec ltx2rt batch bundle jobs.jsonl -o clips --resume --shard $SLURM_PROCID/$SLURM_NTASKS'
