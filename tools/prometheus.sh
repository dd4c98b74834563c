#!/bin/sh
# Unpack Debian's Prometheus with the scripts of its pages into FOLDER, for `make pictures`.
#
#   tools/prometheus.sh build/pictures/prometheus
#
# It is not installed, because the package would start a server.
set -eu

folder=$1
[ ! -x "$folder/usr/bin/prometheus" ] || exit 0
echo "unpacking prometheus"
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
# The pages need the packages of JavaScript and fonts that it depends on.
needed=$(apt-cache depends prometheus | awk '/Depends: (libjs|fonts)/ { print $2 }')
# shellcheck disable=SC2086 # one word for each package
(cd "$work" && apt-get download -qq prometheus $needed)
for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$folder"
done
