#!/usr/bin/env bash
# Sets up .venv when it is missing or outdated, then hands every verb to `python -m tell_plugins`.
#   ./run.sh          the embedded demo, end to end, on a CPU      ./run.sh --help   all verbs
set -euo pipefail

export TELL_CALLER_DIR="${TELL_CALLER_DIR:-$PWD}"
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
readonly PYTHON=.venv/bin/python STAMP=.venv/requirements.installed

find_python() {
  local name found=""
  for name in python3.11 python3.12 python3.10 python3 python; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$name"
      return
    fi
    if command -v "$name" >/dev/null; then found+=" $name ($("$name" --version 2>&1))"; fi
  done
  echo "no Python 3.10 to 3.12 with venv; found:${found:- no Python at all}" >&2
  echo "  remedy:  install one (Debian: apt install python3 python3-venv) and call ./run.sh again" >&2
  exit 2
}

give_up() {
  echo "$1 (see above)" >&2
  echo "  remedy:  check the network and the disk, then call ./run.sh setup again" >&2
  exit 2
}

install() {
  echo "Setting up .venv from requirements.txt (once, 2 to 10 minutes) ..." >&2
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then  # none yet, or one that broke
    local base
    base=$(find_python)
    "$base" -m venv --clear .venv >&2 || give_up ".venv could not be made"
  fi
  "$PYTHON" -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt >&2 ||
    give_up "the packages could not be installed"
  cp requirements.txt "$STAMP"
}

is_ready() { cmp -s requirements.txt "$STAMP" && [ -x "$PYTHON" ]; }

if ! is_ready; then
  if command -v flock >/dev/null; then  # two first calls at once: one installs, the other waits
    exec 9>.venv.lock
    flock 9
  fi
  if ! is_ready; then install; fi
  exec 9>&-  # else the verb would hold the lock as long as it runs
fi

export PATH="$PWD/.venv/bin:$PATH"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"  # waiting threads sleep: a busy CPU stays usable
case "${1-demo}" in  # not `:-`: an empty verb is no call of the demo
  setup) echo "ready: $PWD/.venv" ;;
  test) shift; exec "$PYTHON" -m tests.run_all "$@" ;;
  bench) shift; exec "$PYTHON" -m benchmarks "$@" ;;
  *) exec "$PYTHON" -m tell_plugins "${@-demo}" ;;
esac
