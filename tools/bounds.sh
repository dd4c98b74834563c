#!/bin/sh
# Run the tests that need no kernel with the lowest or the highest versions of all dependencies.
#
#   tools/bounds.sh lowest-direct FOLDER python3.11 [PYTEST ARGUMENTS]
#
# The versions are those that uv chooses with --resolution for pyproject.toml and lab/pyproject.toml, in
# an environment in FOLDER. UV_INDEX_URL or UV_EXTRA_INDEX_URL name other indexes: uv ignores pip.conf.
set -eu
cd "$(dirname "$0")/.."
resolution=$1 folder=$2 python=$3
shift 3

PATH=$PWD/.venv/bin:$PATH
uv venv --quiet --clear --python "$python" "$folder"
uv pip install --quiet --python "$folder/bin/python" --resolution "$resolution" \
    --requirement pyproject.toml --requirement lab/pyproject.toml --extra dev \
    --editable . --editable lab
uv pip list --quiet --python "$folder/bin/python"
exec "$folder/bin/python" -m pytest -p no:cacheprovider -m 'not kernel and not packets and not vm' "$@"
