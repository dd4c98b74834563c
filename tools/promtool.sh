#!/bin/sh
# Put promtool into the folder that is named, out of Debian's package prometheus, where it is not on
# PATH. The package itself is not installed: it would start a server. Where it cannot be had, the
# tests of alerts and dashboard that need it are skipped with the reason.
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
