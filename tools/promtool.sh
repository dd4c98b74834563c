#!/bin/sh
# Put promtool into a folder, if PATH has none: the tests check alerts and dashboard with it.
#
#   tools/promtool.sh .venv/bin
#
# It is unpacked from Debian's package prometheus, which is not installed because it would start a
# server. Without promtool its tests are skipped, with the reason.
set -eu

target=$1/promtool
if command -v promtool >/dev/null || [ -x "$target" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "promtool is missing, and there is no Debian package to take it from" >&2
    exit 0
fi
echo "unpacking promtool"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
(cd "$folder" && apt-get download -qq prometheus >log 2>&1) || {
    cat "$folder/log" >&2
    echo "promtool is missing, and the package prometheus cannot be downloaded" >&2
    exit 0
}
dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb | tar -xO ./usr/bin/promtool >"$folder/promtool"
install -m 755 "$folder/promtool" "$target"
