# shellcheck shell=bash
# Sourced by the scripts of launch/: where the checkout is, the Python to use, and the variables that matter to a training of several processes. What
# is set already is kept.

root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"

# share_cores N: the N processes of this machine share its cores. Left alone, each would start a thread for every core, or, by the launcher's choice,
# only one.
share_cores() {
  local threads=$(($(nproc) / $1))
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
}

# What torch's agent is told by variables, since accelerate has no options for it: pass SIGUSR1 on too (it would die of it and leave the processes
# behind), and give them five minutes to save after a signal, not thirty seconds. Whoever granted the time kills them sooner if it was less.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-300}"

# A log that a killed process had still in its buffer tells nothing.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

# NCCL says nothing of what goes wrong unless asked to.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# When a collective exceeds run.timeout_s, each process writes which collectives it had begun: who waited for whom. Both are needed.
export TORCH_FR_DUMP_ON_TIMEOUT="${TORCH_FR_DUMP_ON_TIMEOUT:-1}"
export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}"

# Tokenizers' threads do not live through the fork of a DataLoader's workers.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

# Set by the harness: CUBLAS_WORKSPACE_CONFIG, without which CUDA is not deterministic. Not set, since only you can know them:
#   NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME   the network interface between machines, where the first one found is the wrong one (docker0), or a
#                                            machine's own name stands for 127.0.1.1 in its /etc/hosts: "connection refused" or a hang at the start
#   NCCL_ALGO=Ring NCCL_PROTO=Simple         the order of additions, chosen by NCCL for the topology it sees: where a run may go on on machines
#                                            wired differently, this keeps its bits
