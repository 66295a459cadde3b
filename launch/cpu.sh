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

# shellcheck source=launch/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"

export ACCELERATE_USE_CPU=true
share_cores "$processes"
[ "$processes" -gt 1 ] || exec "$python" "$root/harness/train.py" "$@"

exec "$python" -m accelerate.commands.launch --config_file "$root/launch/accelerate-cpu.yaml" \
  --multi_gpu --num_machines 1 --num_processes "$processes" --main_process_port 0 "$root/harness/train.py" "$@"
