#!/usr/bin/env bash
# One training on several machines without a queue: run this on each of them, with the same arguments.
#
#   NODES=2 HEAD=machine-a:29500 bash scripts/cluster/torchrun.sh -c gan/cifar10_sngan
#
# NODES      number of machines (default 1)
# HEAD       name of one of them as it calls itself (`hostname`), and a free port there
# PROCESSES  processes on each machine (default: one a GPU, one where there is none)
# RESTARTS   how often all are started anew, from the newest checkpoint, after one has failed (default 3)
# JOB        a name that the machines of this training share, and no other training does (default lightning-gen)
# ADDRESS    address of this machine, where the others cannot find it by its name; HEAD has an address then, too
set -euo pipefail

nodes=${NODES:-1}
head=${HEAD:-}
if [ -z "$head" ]; then
  if [ "$nodes" -gt 1 ]; then
    echo "HEAD=NAME:PORT says which of the $nodes machines the others look for" >&2
    exit 2
  fi
  head=localhost:0 # any free port
fi
by_address=()
if [ -n "${ADDRESS:-}" ]; then
  # torchrun would look its own name up to tell whether it is the head
  is_head=$([ "${head%:*}" = "$ADDRESS" ] && echo 1 || echo 0)
  by_address=(--local-addr="$ADDRESS" --rdzv-conf="is_host=$is_head")
fi
processes=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
# the cores are shared among the processes; torchrun would leave each of them one
threads=$(($(nproc) / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
# Else the store that the processes have found each other by outlives them, and those that are started anew may find
# in it where the old ones were (seen in torch 2.14).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec python -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$processes" \
  --max-restarts="${RESTARTS:-3}" --rdzv-backend=c10d --rdzv-endpoint="$head" --rdzv-id="${JOB:-lightning-gen}" \
  ${by_address[@]+"${by_address[@]}"} -m lightning_gen fit "$@" --trainer.num_nodes="$nodes" --trainer.devices="$processes"
