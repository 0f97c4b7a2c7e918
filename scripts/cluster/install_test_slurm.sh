#!/usr/bin/env bash
# Installs what tests/cluster needs: Slurm, munge and ip. Debian or Ubuntu, as root. No daemon is left running: the
# tests start their own.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
missing=
for program in slurmctld slurmd srun munged ip; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
if [ -z "$missing" ]; then
  exit
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "installing$missing takes root and apt-get" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# packages would start their daemons; one on the machine's own configuration is none of the tests'
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends slurm-wlm munge iproute2
