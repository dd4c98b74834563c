#!/bin/sh
# Build the image with docker, podman or buildah, whichever works here, and start it once.
#
#   tools/image.sh pyproxy:dev [FLAG...]
#
# Further flags are those of the engine's build.
# The base image comes from a registry, or from the engine's own store if that has debian:13-slim.
set -eu
image=$1
shift

for engine in docker podman buildah; do
    if command -v "$engine" >/dev/null && "$engine" info >/dev/null 2>&1; then
        cd "$(dirname "$0")/.."
        "$engine" build --tag "$image" "$@" .
        if [ "$engine" = buildah ]; then
            container=$(buildah from "$image")
            trap 'buildah rm "$container" >/dev/null' EXIT
            buildah run "$container" -- pyproxy version
        else
            "$engine" run --rm "$image" version
        fi
        exit
    fi
done
echo "no docker, podman or buildah that works: make image-check builds the stages without one" >&2
exit 1
