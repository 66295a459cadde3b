#!/usr/bin/env bash
# Train with N processes on this machine's CPU:
#
#   launch/cpu.sh N CONFIG [key=value ...]        e.g. launch/cpu.sh 2 configs/digits.yaml run.seed=8
#
# SIGTERM, SIGINT and SIGUSR1 sent to it reach every process, which saves and leaves. The exit code is the training's (0, 2, 3, 75: see README.md).
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 2 ] && [[ $1 =~ ^[1-9][0-9]*$ ]] || usage
processes="$1"
shift

# shellcheck source=launch/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
fermarsi launch --cpu --processes "$processes" "$@"
