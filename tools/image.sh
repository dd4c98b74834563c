#!/bin/sh
# Build the image with whichever engine is at hand: docker, podman or buildah.
#
#   tools/image.sh pyproxy:dev
set -eu

for engine in docker podman buildah; do
    if command -v "$engine" >/dev/null && "$engine" info >/dev/null 2>&1; then
        cd "$(dirname "$0")/.."
        "$engine" build --tag "$1" .
        [ "$engine" = buildah ] || "$engine" run --rm "$1" version
        exit
    fi
done
echo "no docker, podman or buildah that works: make image-check builds the stages without one" >&2
exit 1
