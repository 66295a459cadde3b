# shellcheck shell=bash
# Sourced by the scripts of launch/: where the checkout is, the Python to use, and `fermarsi COMMAND ...` from there, which takes this process's place.
# The variables that matter to a training of several processes (threads, signals, NCCL) are set by `fermarsi launch`: harness/commands/launch.py says which,
# and why. What is set already is kept.

root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"

fermarsi() {
  exec "$python" -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); from harness.cli import main; main()' "$root" "$@"
}
