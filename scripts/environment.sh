# Sourced by the other scripts: sets PYTHON to one that can run the project.
# An active virtual environment (or conda environment) is used; without one, .venv is made beside the project.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -n "${VIRTUAL_ENV:-}" ] || [ -n "${CONDA_PREFIX:-}" ]; then
  PYTHON=$(command -v python)
else
  if [ ! -x .venv/bin/python ]; then
    base=
    for candidate in python3.13 python3.12 python3.11 python3.10 python3 python; do
      if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        base=$candidate
        break
      fi
    done
    if [ -z "$base" ]; then
      echo "lightning_gen needs Python 3.10 to 3.13 with its venv module; none was found on PATH." >&2
      exit 1
    fi
    echo "making the environment .venv with $("$base" --version)" >&2
    "$base" -m venv .venv
  fi
  PYTHON=$PWD/.venv/bin/python
fi

# installs the project with the extras named, once for each state of setup.cfg
install() {
  local stamp state
  stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.lightning_gen-$1"
  state=$(cat setup.cfg pyproject.toml | cksum; pwd)
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ]; then
    echo "installing lightning_gen[$1] (the first time, torch takes a few minutes)" >&2
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
    echo "$state" >"$stamp"
  fi
}
