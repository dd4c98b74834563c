#!/bin/sh
# Copy Python's library and packages into a disk image for the virtual machine.
#
#   tools/vm-image.sh .vm/python .venv/bin/python
#
# Python opens thousands of files. Over 9p each costs a dozen round trips, on a disk none. Without the
# image, or the mke2fs that makes it, the machine works too, but slower.
set -eu
image=$1
python=$2
PATH="$PATH:/usr/sbin:/sbin"
if [ -n "$(find "$image" -newer .venv/.installed 2>/dev/null)" ]; then
    exit 0
fi
command -v mke2fs >/dev/null || exit 0

folders=$("$python" -c 'import sysconfig as s; print(s.get_path("stdlib"), s.get_path("purelib"))')
library=${folders% *} packages=${folders#* }
staging=$(mktemp -d "$image.XXXXXX")
trap 'rm -rf "$staging"' EXIT
mkdir -p "$staging$library" "$staging$packages"
printf '%s\n' "$library" "$packages" >"$staging/folders"
tar -c -C "$library" --exclude=./site-packages --exclude=./dist-packages --exclude=./test \
    --exclude='./config-*' . | tar -x -C "$staging$library"
tar -c -C "$packages" --exclude='./mypy*' --exclude='./*__mypyc*' --exclude='./numpy*' \
    --exclude='./matplotlib*' --exclude='./fontTools' --exclude='./pillow*' --exclude='./PIL' \
    --exclude='./playwright*' --exclude='./pip' \
    . | tar -x -C "$staging$packages"
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$staging" "$staging.ext4" 1G >/dev/null
mv "$staging.ext4" "$image"
