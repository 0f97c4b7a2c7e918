#!/usr/bin/env bash
# One training on several machines without a queue: run this on each of them, with the same arguments.
#
#   NODES=2 HEAD=machine-a:29500 bash scripts/cluster/torchrun.sh -c gan/cifar10_sngan
#
# NODES      number of machines (default 1)
# HEAD       name or address of one of them, and a free port there (default: this machine)
# PROCESSES  processes a machine (default: one a GPU, one where there is none)
# RESTARTS   how often all are started anew, from the newest checkpoint, after one has failed (default 3)
# JOB        a name that all machines of this training share, and no other training (default lightning-gen)
set -euo pipefail

nodes=${NODES:-1}
processes=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}

exec torchrun --nnodes="$nodes" --nproc-per-node="$processes" --max-restarts="${RESTARTS:-3}" \
  --rdzv-backend=c10d --rdzv-endpoint="${HEAD:-localhost:29500}" --rdzv-id="${JOB:-lightning-gen}" \
  -m lightning_gen fit "$@" --trainer.num_nodes="$nodes" --trainer.devices="$processes"
