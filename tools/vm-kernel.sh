#!/bin/sh
# Put Debian's kernel and its modules into a folder, for the virtual machine of the tests.
#
#   tools/vm-kernel.sh .vm
#
# The package is unpacked and not installed, so this machine and its boot loader do not change.
# Without Debian's apt the tests are skipped, with the reason. A folder FOLDER/kernel with
# boot/vmlinuz-* and lib/modules/* of another kernel works as well.
set -eu

folder=$1
for image in "$folder"/kernel/boot/vmlinuz-*; do
    [ ! -e "$image" ] || exit 0
done

meta=linux-image-amd64
package=
if command -v apt-cache >/dev/null && command -v depmod >/dev/null; then
    package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
fi
if [ -z "$package" ]; then
    echo "no kernel for the virtual machine: it takes Debian's $meta, as apt knows it, and depmod" >&2
    exit 0
fi

echo "downloading $package"
mkdir -p "$folder"
work=$(mktemp -d "$folder/unpacking.XXXXXX")
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package")

# Most of a kernel's modules drive devices that no virtual machine has.
dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work" \
    --exclude='*/drivers/gpu/*' --exclude='*/drivers/media/*' --exclude='*/sound/*' \
    --exclude='*/drivers/net/ethernet/*' --exclude='*/drivers/net/wireless/*' \
    ./boot ./lib/modules
version=$(ls "$work/lib/modules")
depmod -b "$work" "$version"
# Under emulation, decompressing the kernel takes longer than the rest of its boot.
python3 - "$work/boot/vmlinuz-$version" "$work/boot/vmlinux-$version" <<'END'
import lzma, sys
packed = open(sys.argv[1], "rb").read()
start = packed.find(b"\xfd7zXZ\0")
if start >= 0:
    with open(sys.argv[2], "wb") as kernel:
        kernel.write(lzma.LZMADecompressor().decompress(packed[start:]))
END
rm -rf "$work"/*.deb "$folder/kernel"
mkdir "$folder/kernel"
mv "$work/boot" "$work/lib" "$folder/kernel"
