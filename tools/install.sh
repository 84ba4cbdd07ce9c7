# Sourced by demo.sh and test.sh: a virtual environment in .venv with mechrl in it, made once and reused.
#
#   MECHRL_TORCH_INDEX=URL     the wheel index to take torch from (https://download.pytorch.org/whl/cpu for a CPU build)
#   MECHRL_SYSTEM_TORCH=1      keep the torch (2.8 or newer) that this Python already has
#   PYTHON=python3.12          another interpreter than python3
#
# install EXTRA: installs mechrl[EXTRA], or mechrl alone where EXTRA is empty.

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

install() {
  local extra=${1:+[$1]} python=${PYTHON:-python3} venv=.venv stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "mechrl needs Python 3.11 or newer, and '$python' is not; name one with PYTHON=…"
  stamp=$(cat setup.cfg pyproject.toml tools/constraints.txt | cksum; printf '%s' "$extra ${MECHRL_SYSTEM_TORCH:-} ${MECHRL_TORCH_INDEX:-}")
  if [ "$(cat "$venv/stamp$1" 2>/dev/null)" != "$stamp" ]; then
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
      { [ -n "${MECHRL_SYSTEM_TORCH:-}" ] && ! grep -q 'system-site-packages = true' "$venv/pyvenv.cfg"; }; then
      say "making the virtual environment $venv"
      "$python" -m venv --clear ${MECHRL_SYSTEM_TORCH:+--system-site-packages} "$venv" ||
        fail "'$python -m venv' does not work; on Debian and Ubuntu: apt install python3-venv"
    fi
    if [ -n "${MECHRL_SYSTEM_TORCH:-}" ]; then
      "$venv/bin/python" -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8))' 2>/dev/null ||
        fail "MECHRL_SYSTEM_TORCH is set, and there is no torch 2.8 or newer here"
      grep -v '^torch==' tools/constraints.txt >"$venv/constraints.txt"
    else
      cp tools/constraints.txt "$venv/constraints.txt"
      say "installing torch"
      "$venv/bin/python" -m pip install -q ${MECHRL_TORCH_INDEX:+--index-url "$MECHRL_TORCH_INDEX"} \
        "$(grep '^torch==' tools/constraints.txt)" || fail "torch could not be installed"
    fi
    say "installing mechrl"
    "$venv/bin/python" -m pip install -q -c "$venv/constraints.txt" -e ".$extra" || fail "mechrl could not be installed"
    printf '%s' "$stamp" >"$venv/stamp$1"
  fi
  PATH=$PWD/$venv/bin:$PATH
}
