#!/usr/bin/env bash
# Train on several machines, started by hand: the same command on each, but for its number.
#
#   launch/multinode.sh NODE NODES HEAD[:PORT] CONFIG [key=value ...]
#
#   on the first:   launch/multinode.sh 0 2 node-a:29400 configs/digits.yaml run.dir=/shared/runs/digits
#   on the second:  launch/multinode.sh 1 2 node-a:29400 configs/digits.yaml run.dir=/shared/runs/digits
#
# HEAD is machine 0 as the others reach it; PORT (default 29400) must be free there. Each machine runs one process per GPU; PER_NODE=n sets their
# number, and is needed on machines without GPUs (with ACCELERATE_USE_CPU=true). run.dir must be one directory that all machines see.
# SIGTERM, SIGINT and SIGUSR1 sent to one of them reach its processes, and all machines save and leave at the same step. The exit code is the
# launcher's: 0, or 1 whatever the processes said; launch/attend.sh tells more, or the run's outcome.json. One machine is a number of machines too:
# launch/slurm.sbatch, kubernetes.yaml and skypilot.yaml all come through here.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 4 ] && [[ $1 =~ ^[0-9]+$ && $2 =~ ^[1-9][0-9]*$ ]] && [ "$1" -lt "$2" ] || usage
node="$1" nodes="$2" head="${3%:*}" port=29400
[[ $3 != *:* ]] || port="${3##*:}"
shift 3

# shellcheck source=launch/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"

per_node="${PER_NODE:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}"
if [ "$per_node" -eq 0 ]; then
  echo "launch/multinode.sh: torch sees no GPU here. Set PER_NODE and ACCELERATE_USE_CPU=true to train on CPUs, or see what nvidia-smi says." >&2
  exit 2
fi
share_cores "$per_node"
[ $((per_node * nodes)) -gt 1 ] || exec "$python" "$root/harness/train.py" "$@"

# Machine 0 keeps the store at which all meet (is_host): left to itself, torch guesses by comparing host names. Late machines have ten minutes.
meeting=(--config_file "$root/launch/accelerate-multinode.yaml" --rdzv_conf "is_host=$((node == 0)),join_timeout=600")
meeting+=(--machine_rank "$node" --main_process_ip "$head" --main_process_port "$port")
[ "$nodes" -gt 1 ] || meeting=(--config_file "$root/launch/accelerate-gpu.yaml" --main_process_port 0)
exec "$python" -m accelerate.commands.launch "${meeting[@]}" --multi_gpu --num_machines "$nodes" --num_processes $((per_node * nodes)) \
  "$root/harness/train.py" "$@"
