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
# launcher's: 0, or 1 whatever the processes said; why the training ended is in the run's outcome.json.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 4 ] && [[ $1 =~ ^[0-9]+$ && $2 =~ ^[1-9][0-9]*$ ]] && [ "$1" -lt "$2" ] || usage
node="$1" nodes="$2" head="${3%:*}" port=29400
[[ $3 != *:* ]] || port="${3##*:}"
shift 3

root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"

per_node="${PER_NODE:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}"
if [ "$per_node" -eq 0 ] || [ $((per_node * nodes)) -lt 2 ]; then
  echo "launch/multinode.sh: $per_node processes on each of $nodes machines. Set PER_NODE, and ACCELERATE_USE_CPU=true without GPUs; on one machine use launch/gpu.sh." >&2
  exit 2
fi
if [ -z "${OMP_NUM_THREADS:-}" ]; then
  threads=$(($(nproc) / per_node))
  export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi

# As in launch/cpu.sh: SIGUSR1 is passed on too, and five minutes to save after a signal.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-300}"
# Machine 0 keeps the store at which all meet (is_host): left to itself, torch guesses by comparing host names. Late machines have ten minutes.
exec "$python" -m accelerate.commands.launch --config_file "$root/launch/accelerate-gpu.yaml" \
  --multi_gpu --num_machines "$nodes" --machine_rank "$node" --num_processes $((per_node * nodes)) \
  --rdzv_backend c10d --rdzv_conf "is_host=$((node == 0)),join_timeout=600" --main_process_ip "$head" --main_process_port "$port" \
  "$root/harness/train.py" "$@"
