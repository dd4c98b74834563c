#!/bin/sh
# Build what a release publishes from the last commit: wheels, sdists and the chart.
#
#   tools/dist.sh dist
#
# The files are built in a copy of the commit, so that neither changes nor untracked files are part
# of them, and have the commit's time. The tools come from the extra "release", and helm from PATH.
# CHART_IMAGE is the repository of the image in the chart, pyproxy unless given.
set -eu

cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
PATH=$PWD/.venv/bin:$PATH
mkdir -p "$1"
out=$(cd "$1" && pwd)

git diff --quiet HEAD || echo "uncommitted changes are not part of the packages" >&2
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
git archive HEAD | tar -x -C "$tree"
# The sdist of the lab has only files of its own folder.
cp "$tree/LICENSE" "$tree/lab/"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

rm -f "$out"/*pyproxy*
for project in "$tree" "$tree/lab"; do
    "$python" -m build --installer uv --outdir "$out" "$project" >"$tree/log" 2>&1 || {
        cat "$tree/log" >&2
        exit 1
    }
done
"$python" -m twine --no-color check --strict "$out"/*.whl "$out"/*.tar.gz
if command -v helm >/dev/null; then
    values=$tree/deploy/helm/pyproxy/values.yaml
    sed -i "s#^  repository: pyproxy\$#  repository: ${CHART_IMAGE:-pyproxy}#" "$values"
    grep -q "^  repository: ${CHART_IMAGE:-pyproxy}\$" "$values"
    helm package "$tree/deploy/helm/pyproxy" --destination "$out" >"$tree/log" 2>&1 || {
        cat "$tree/log" >&2
        exit 1
    }
else
    echo "the chart is not packaged, because helm is missing" >&2
fi
ls "$out"
