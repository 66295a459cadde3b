#!/usr/bin/env bash
# Train on all GPUs of this machine, one process each (CUDA_VISIBLE_DEVICES narrows them down):
#
#   launch/gpu.sh CONFIG [key=value ...]        e.g. launch/gpu.sh configs/fashion_mnist.yaml train.precision=bf16
#
# SIGTERM, SIGINT and SIGUSR1 sent to it reach every process, which saves and leaves. With several GPUs the exit code is the launcher's: 0, or 1
# whatever the processes said; why the training ended is in the run's outcome.json. With one GPU it is the process's own (0, 2, 3, 75: see README.md).
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 1 ] || usage

# shellcheck source=launch/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"

gpus="$("$python" -c 'import torch; print(torch.cuda.device_count())')"
if [ "$gpus" -eq 0 ]; then
  echo "launch/gpu.sh: torch sees no GPU here. Train on the CPU with launch/cpu.sh N CONFIG, or see what nvidia-smi and CUDA_VISIBLE_DEVICES say." >&2
  exit 2
fi
share_cores "$gpus"
[ "$gpus" -gt 1 ] || exec "$python" "$root/harness/train.py" "$@"

exec "$python" -m accelerate.commands.launch --config_file "$root/launch/accelerate-gpu.yaml" \
  --multi_gpu --num_machines 1 --num_processes "$gpus" --main_process_port 0 "$root/harness/train.py" "$@"
