#!/usr/bin/env bash
# Sets up .venv with what the verb needs, then hands the verb to `python -m tell_plugins`.
#   ./run.sh          the embedded demo, end to end, on a CPU      ./run.sh --help   all verbs
set -euo pipefail

export TELL_CALLER_DIR="${TELL_CALLER_DIR:-$PWD}"
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ "${2-}" = --swift ]; then  # ./run.sh VERB --swift latest ...
  export TELL_SWIFT=${3-}
  set -- "$1" "${@:4}"
fi
case "${TELL_SWIFT-pinned}" in
  pinned) VENV=.venv GROUPS_KNOWN="light data train translation ray tests" ;;
  latest) VENV=.venv-latest GROUPS_KNOWN="latest tests" ;;
  *)
    echo "no ms-swift '$TELL_SWIFT' (--swift or \$TELL_SWIFT)" >&2
    echo "  allowed: pinned, latest" >&2
    exit 1
    ;;
esac
readonly PYTHON=$VENV/bin/python INSTALLED=$VENV/installed UNFINISHED=$VENV/unfinished
readonly UV_VERSION=0.13.9

groups_of() {  # the files of requirements/ that a verb needs
  case "$GROUPS_KNOWN $1" in
    "latest tests test") echo latest tests ;;
    latest*) echo latest ;;
    *) groups_of_pinned "$1" ;;
  esac
}

groups_of_pinned() {
  case "$1" in
    check | mix | new | plugin | "" | -*) echo light ;;
    data) echo light data ;;
    test) echo "$GROUPS_KNOWN" ;;
    *) echo light data train ;;
  esac
}

groups_to_set_up() {  # those that `setup [GROUP...]` names
  local group wanted="light data train"
  if [ "$VENV" != .venv ]; then wanted=latest; fi
  [ $# -gt 0 ] || set -- "${wanted##* }"
  for group in "$@"; do
    case " $GROUPS_KNOWN all " in
      *" $group "*) ;;
      *)
        echo "no group '$group' of packages" >&2
        echo "  allowed: all ${GROUPS_KNOWN}" >&2
        echo "  remedy:  ./run.sh setup [--swift latest] [GROUP...]; without a group, what trains" >&2
        exit 1
        ;;
    esac
    case "$group" in
      all) wanted=$GROUPS_KNOWN ;;
      light) [ $# -gt 1 ] || wanted=light ;;
      data) [ $# -gt 1 ] || wanted="light data" ;;
      *) wanted+=" $group" ;;
    esac
  done
  echo "$wanted"
}

find_python() {
  local name found=""
  for name in python3.11 python3.12 python3.10 python3 python; do
    if "$name" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
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

PIP=()
find_pip() {  # that of .venv, else the system's at work for .venv, else the one that Python brings
  local base
  PIP=("$PYTHON" -m pip)
  if "$PYTHON" -c "import pip" 2>/dev/null; then return; fi
  base=$(find_python)
  if "$base" -c 'import pip; v = pip.__version__.split("."); exit((int(v[0]), int(v[1])) < (22, 3))' 2>/dev/null; then
    PIP=("$base" -m pip --python "$PYTHON")
  else
    "$PYTHON" -m ensurepip >/dev/null 2>&1
  fi
}

UV=""
find_uv() {  # that of the machine, else one from the package index
  if UV=$(command -v uv); then return; fi
  UV=$VENV/bin/uv
  [ -x "$UV" ] || "${PIP[@]}" install -qq --disable-pip-version-check "uv==$UV_VERSION" >&2
}

take_pips_settings() {  # uv reads none of them: the index, a mirror, wheels at hand (torch for CPUs)
  local line value
  while IFS= read -r line; do
    value=${line#*=\'}
    value=${value%\'}
    value=${value//\\n/ }
    case "$line" in
      *.index-url=*) export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$value}" ;;
      *.extra-index-url=*) export UV_INDEX="${UV_INDEX:-$value}" ;;
      *.find-links=*) export UV_FIND_LINKS="${UV_FIND_LINKS:-${value// /,}}" ;;
      *.trusted-host=*) export UV_INSECURE_HOST="${UV_INSECURE_HOST:-$value}" ;;
    esac
  done < <("${PIP[@]}" config list 2>/dev/null)
  export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"  # the best of all indexes, as pip
  export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
}

install_by_uv() {  # with its progress on a terminal; in a log without its list of every package
  if [ -t 2 ]; then
    "$UV" pip install --python "$PYTHON" "$@" >&2
  else
    "$UV" pip install --python "$PYTHON" "$@" 2>&1 | sed -u '/^ [+~-] /d' >&2
  fi
}

fetch() {  # the packages of requirement files into $VENV: by uv, ten times as fast, else by pip
  local has_pip=true
  find_pip || has_pip=false
  if find_uv; then
    if $has_pip; then take_pips_settings; fi
    if install_by_uv "$@"; then return; fi
    echo "uv could not install the packages (see above); pip tries it" >&2
  fi
  $has_pip && "${PIP[@]}" install --disable-pip-version-check --progress-bar on "$@" >&2
}

install() {
  local group files=() all=() start=$SECONDS
  if [ -e $UNFINISHED ] || ! "$PYTHON" -c "" 2>/dev/null; then  # cut short, none yet, or broken
    local base
    base=$(find_python)
    "$base" -m venv --clear --without-pip $VENV >&2 || give_up "$VENV could not be made"
  fi
  for group in $GROUPS_KNOWN; do  # what is there already stays there
    case " $* " in
      *" $group "*) ;;
      *) [ -f "$INSTALLED/$group.txt" ] || continue ;;
    esac
    all+=("$group")
    files+=(-r "requirements/$group.txt")
    is_ready "$group" || echo "Setting up $(head -n 1 "requirements/$group.txt" | cut -c 3-)" >&2
  done
  rm -rf $VENV/bytecode  # of the packages that are replaced
  : > $UNFINISHED  # half a package looks like a whole one to uv
  fetch "${files[@]}" || give_up "the packages could not be installed"
  rm $UNFINISHED
  mkdir -p "$INSTALLED"
  for group in "${all[@]}"; do cp "requirements/$group.txt" "$INSTALLED"; done
  echo "Set up in $((SECONDS - start)) s" >&2
}

is_ready() {
  local group
  [ -x "$PYTHON" ] && [ ! -e $UNFINISHED ] || return 1
  for group in "$@"; do cmp -s "requirements/$group.txt" "$INSTALLED/$group.txt" || return 1; done
}

verb=${1-demo}  # not `:-`: an empty verb is no call of the demo
case "$verb $*" in
  setup*" -h"* | setup*" --help"*)
    echo "usage: ./run.sh setup [--swift latest] [GROUP...]"
    echo "make .venv and install what is pinned; groups: all $GROUPS_KNOWN (default: what trains)"
    exit
    ;;
esac
if [ "$verb" = setup ]; then groups=$(groups_to_set_up "${@:2}"); else groups=$(groups_of "$verb"); fi
if ! is_ready $groups; then
  if command -v flock >/dev/null; then  # two first calls at once: one installs, the other waits
    exec 9>$VENV.lock
    flock 9
  fi
  if ! is_ready $groups; then
    if [ "$verb" = demo ]; then
      echo "The demo: set up .venv, fetch a model (93 MB), train it in four ways on 2 cores, test them" >&2
    fi
    install $groups
  fi
  exec 9>&-  # else the verb would hold the lock as long as it runs
fi

export PATH="$PWD/$VENV/bin:$PATH"
if [ -n "${PYTHONDONTWRITEBYTECODE-}" ]; then  # as in many containers: each start then compiles
  unset PYTHONDONTWRITEBYTECODE                # 4,000 modules, 12 s. Still none beside the sources
  export PYTHONPYCACHEPREFIX="${PYTHONPYCACHEPREFIX-$PWD/$VENV/bytecode}"
fi
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"  # waiting threads sleep: a busy CPU stays usable
case "$verb" in
  setup) echo "ready: $PWD/$VENV" ;;
  test) shift; exec "$PYTHON" -m tests.run_all "$@" ;;
  bench) shift; exec "$PYTHON" -m benchmarks "$@" ;;
  *) exec "$PYTHON" -m tell_plugins "${@-demo}" ;;
esac
