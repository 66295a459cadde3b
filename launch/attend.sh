#!/usr/bin/env bash
# Run a launcher and exit as the run stands, which a launcher's own exit code does not tell:
#
#   launch/attend.sh RUN COMMAND [ARGUMENT ...]      e.g. launch/attend.sh runs/digits launch/cpu.sh 2 configs/digits.yaml
#
# RUN is the run directory (run.dir) of what COMMAND trains. SIGTERM, SIGUSR1 and SIGINT, sent to this script, ask the run to save and leave.
# Exit code, as of `fermarsi status RUN`: 0 ended; 75 saved, or asked to leave before it could: to be resumed; 1 crashed; 2 never began.
# Can also be sourced, for its function.

attend() {
  local run="$1" asked="" launcher="" before launched=0 code=0
  shift
  before="$(cat -- "$run/outcome.json" 2>/dev/null)" || true
  # The file reaches the run where signals are lost on the way. CONT is not trapped: bash would lose the signal that comes with it.
  trap 'asked=1; [ ! -d "$run" ] || : >"$run/PREEMPT"; [ -z "$launcher" ] || kill -USR1 "$launcher" 2>/dev/null || true' TERM USR1 INT
  "$@" &
  launcher=$!
  wait "$launcher" || launched=$?
  while kill -0 "$launcher" 2>/dev/null; do # a signal ended the wait, not the launcher
    launched=0
    wait "$launcher" || launched=$?
  done
  trap - TERM USR1 INT
  PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$python" -c 'from harness.cli import main; main()' status "$run" || code=$?
  [ "$code" -ne 0 ] || return 0
  # Under torch's agent all processes leave with 0 when they are interrupted: launched 0, though the run has not ended, is one of these.
  [ -z "$asked" ] && [ "$launched" -ne 0 ] && [ "$launched" -ne 75 ] || return 75
  if [ "$code" -eq 75 ] && [ "$before" = "$(cat -- "$run/outcome.json" 2>/dev/null)" ]; then
    echo "$run: that was said by an earlier launch; this one ended with $launched before it could begin" >&2
    code=1
  fi
  return "$code"
}

# shellcheck source=launch/env.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/env.sh"
[ "${BASH_SOURCE[0]}" = "$0" ] || return 0
[ $# -ge 2 ] || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
attend "$@"
