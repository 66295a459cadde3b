#!/usr/bin/env bash
# Train on all GPUs of this machine, one process each (CUDA_VISIBLE_DEVICES narrows them down):
#
#   launch/gpu.sh CONFIG [key=value ...]        e.g. launch/gpu.sh configs/fashion_mnist.yaml train.precision=bf16
#
# SIGTERM, SIGINT and SIGUSR1 sent to it reach every process, which saves and leaves. The exit code is the training's (0, 2, 3, 75: see README.md).
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 1 ] || usage

# shellcheck source=launch/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
fermarsi launch "$@"
