#!/usr/bin/env bash
# Train with N processes on this machine's CPU:
#
#   launch/cpu.sh N CONFIG [key=value ...]        e.g. launch/cpu.sh 2 configs/digits.yaml run.seed=8
#
# SIGTERM, SIGINT and SIGUSR1 sent to it reach every process, which saves and leaves. With N > 1 the exit code is the launcher's: 0, or 1 whatever
# the processes said; why the training ended is in the run's outcome.json. With N = 1 it is the process's own (0, 2, 3, 75: see README.md).
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 2 ] && [[ $1 =~ ^[1-9][0-9]*$ ]] || usage
processes="$1"
shift

root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"

export ACCELERATE_USE_CPU=true
if [ -z "${OMP_NUM_THREADS:-}" ]; then
  threads=$(($(nproc) / processes))
  export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi
[ "$processes" -gt 1 ] || exec "$python" "$root/harness/train.py" "$@"

# What torch's agent is told by variables, since accelerate has no options for it: pass SIGUSR1 on too (it would die of it and leave the processes
# behind), and give them five minutes to save after a signal, not thirty seconds.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-300}"
exec "$python" -m accelerate.commands.launch --config_file "$root/launch/accelerate-cpu.yaml" \
  --multi_gpu --num_machines 1 --num_processes "$processes" --main_process_port 0 "$root/harness/train.py" "$@"
