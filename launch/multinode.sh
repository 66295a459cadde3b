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
# training's (0, 2, 3, 75: see README.md). One machine is a number of machines too: launch/slurm.sbatch, kubernetes.yaml and skypilot.yaml all come
# through here.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 4 ] && [[ $1 =~ ^[0-9]+$ && $2 =~ ^[1-9][0-9]*$ ]] && [ "$1" -lt "$2" ] || usage
node="$1" nodes="$2" head="$3"
shift 3

# shellcheck source=launch/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"

here=()
[ -z "${PER_NODE:-}" ] || here+=(--processes "$PER_NODE")
fermarsi launch --nodes "$nodes" --node "$node" --head "$head" "${here[@]}" "$@"
