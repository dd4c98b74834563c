#!/bin/sh
# Put the kernel of a Debian suite and its modules into FOLDER/kernel-SUITE, for the virtual machine.
#
#   tools/vm-kernel.sh .vm bookworm
#
# A private apt state reads SUITE from the Debian mirror that this machine's apt is configured with.
# The packages are unpacked and not installed, so this machine and its boot loader do not change.
# Without Debian's apt the tests are skipped, with the reason. A folder FOLDER/kernel-NAME with
# boot/vmlinuz-* and lib/modules/* of another kernel works as well.
set -eu

folder=$1 suite=$2
target=$folder/kernel-$suite
meta=linux-image-amd64
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
PATH="$PATH:/usr/sbin:/sbin"
for image in "$target"/boot/vmlinuz-*; do
    [ ! -e "$image" ] || exit 0
done

mirror=
if command -v apt-get >/dev/null && command -v depmod >/dev/null; then
    # shellcheck disable=SC2016 # apt's own fields
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 !~ /-/ { print $3; exit }')
fi
if [ -z "$mirror" ]; then
    echo "no kernel for the virtual machine: it takes depmod, and an apt that reads Debian's archive" >&2
    exit 0
fi

echo "downloading the kernel of $suite"
mkdir -p "$folder"
work=$(mktemp -d "$folder/unpacking.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
signed=
[ ! -e "$keyring" ] || signed="[signed-by=$keyring]"
echo "deb $signed $mirror $suite main" >"$work/sources"

# private COMMAND ARGUMENTS: run apt-get or apt-cache on the private state alone.
private() {
    command=$1
    shift
    "$command" -qq -o Dir::Etc::sourcelist="$work/sources" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$work/cache" \
        -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}

# named KIND PACKAGE: print the packages that PACKAGE depends on and whose names begin with KIND.
named() {
    private apt-cache depends "$2" | sed -n "s/^ *Depends: \($1-[0-9].*\)/\1/p"
}

work=$(realpath "$work")
private apt-get update
package=$(named linux-image "$meta")
# Newer suites have the image and the modules in packages of their own.
packages="$package $(named 'linux-\(base\|binary\|modules\)' "$package")"
# shellcheck disable=SC2086 # a list of packages
(cd "$work" && private apt-get download $packages)

# Most of a kernel's modules drive devices that no virtual machine has.
mkdir "$work/root"
for archive in "$work"/*.deb; do
    dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$work/root" \
        --exclude='*/drivers/gpu/*' --exclude='*/drivers/media/*' --exclude='*/sound/*' \
        --exclude='*/drivers/net/ethernet/*' --exclude='*/drivers/net/wireless/*' --exclude='./usr/share'
done
root=$work/root
[ -e "$root/lib" ] || mv "$root/usr/lib" "$root/lib"
version=$(ls "$root/lib/modules")
for image in "$root/lib/modules/$version"/vmlinuz*; do
    [ ! -e "$image" ] || { mkdir -p "$root/boot" && mv "$image" "$root/boot/vmlinuz-$version"; }
done
# Under emulation, decompressing the kernel takes longer than the rest of its boot, and decompressing
# modules longer than loading them.
find "$root/lib/modules" -name '*.ko.xz' -exec xz -d {} +
depmod -b "$root" "$version"
python3 - "$root/boot/vmlinuz-$version" "$root/boot/vmlinux-$version" <<'END'
import lzma, pathlib, shutil, subprocess, sys
packed, kernel = map(pathlib.Path, sys.argv[1:])
image = packed.read_bytes()
# The x86 boot protocol: setup_sects, payload_offset and payload_length, which ends in a size.
start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
payload = image[start : start + int.from_bytes(image[0x24C:0x250], "little") - 4]
if payload.startswith(b"\xfd7zXZ\0"):
    kernel.write_bytes(lzma.decompress(payload))
elif payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
    kernel.write_bytes(subprocess.run(["zstd", "-dc"], input=payload, capture_output=True, check=True).stdout)
END
rm -rf "$target"
mkdir "$target"
mv "$root/boot" "$root/lib" "$target"
