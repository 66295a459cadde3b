#!/usr/bin/env bash
# The image's HEALTHCHECK: 1 if the run in RUN_DIR crashed, 0 if it goes on, waits, ended, or has not begun.
set -euo pipefail
told="$(fermarsi status --json "${RUN_DIR:?}" || true)"
echo "$told"
[[ $told == *'"state"'* && $told != *'"state": "crashed"'* ]]
