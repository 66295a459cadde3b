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

root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"

gpus="$("$python" -c 'import torch; print(torch.cuda.device_count())')"
if [ "$gpus" -eq 0 ]; then
  echo "launch/gpu.sh: torch sees no GPU here. Train on the CPU with launch/cpu.sh N CONFIG, or see what nvidia-smi and CUDA_VISIBLE_DEVICES say." >&2
  exit 2
fi
if [ -z "${OMP_NUM_THREADS:-}" ]; then
  threads=$(($(nproc) / gpus))
  export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi
[ "$gpus" -gt 1 ] || exec "$python" "$root/harness/train.py" "$@"

# As in launch/cpu.sh: SIGUSR1 is passed on too, and five minutes to save after a signal.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-300}"
exec "$python" -m accelerate.commands.launch --config_file "$root/launch/accelerate-gpu.yaml" \
  --multi_gpu --num_machines 1 --num_processes "$gpus" --main_process_port 0 "$root/harness/train.py" "$@"
