#!/usr/bin/env bash
# Sets up .venv when it is missing or outdated, then hands every verb to `python -m tell_plugins`.
#   ./run.sh          the embedded demo, end to end, on a CPU      ./run.sh --help   all verbs
set -euo pipefail

export TELL_CALLER_DIR="${TELL_CALLER_DIR:-$PWD}"
cd "$(dirname "${BASH_SOURCE[0]}")"
readonly PYTHON=.venv/bin/python STAMP=.venv/requirements.installed

find_python() {
  local name
  for name in python3.11 python3.12 python3.10 python3 python; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "no Python 3.10 to 3.12 with venv found" >&2
  echo "  remedy:  install one (Debian: apt install python3 python3-venv) and call ./run.sh again" >&2
  exit 2
}

setup() {
  if cmp -s requirements.txt "$STAMP"; then return; fi
  if command -v flock >/dev/null; then  # two first calls at once: one installs, the other waits
    exec 9>.venv.lock
    flock 9
    if cmp -s requirements.txt "$STAMP"; then return; fi
  fi
  echo "Setting up .venv from requirements.txt (once, 2 to 10 minutes) ..." >&2
  local base
  base=$(find_python)
  [ -x "$PYTHON" ] || "$base" -m venv .venv
  if ! "$PYTHON" -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt; then
    echo "the packages could not be installed (see above)" >&2
    echo "  remedy:  check the network and the disk, then call ./run.sh setup again" >&2
    exit 2
  fi
  cp requirements.txt "$STAMP"
}

setup
export PATH="$PWD/.venv/bin:$PATH"
case "${1:-demo}" in
  setup) echo "ready: $PWD/.venv" ;;
  test) shift; exec "$PYTHON" -m tests.run_all "$@" ;;
  bench) shift; exec "$PYTHON" -m benchmarks "$@" ;;
  *) exec "$PYTHON" -m tell_plugins "${@:-demo}" ;;
esac
