#!/bin/sh
# Unpack Debian's packages into a folder, which becomes the root of the image.
#
#   unpack.sh PACKAGES FOLDER
#
# No maintainer script runs, so this script does what the image needs of them. Scanners read the list
# of packages in /var/lib/dpkg/status.d.
set -eu

list=$1 root=$2
status=$root/var/lib/dpkg/status.d
mkdir -p "$status"
downloads=$(mktemp -d)
cd "$downloads"
# shellcheck disable=SC2046 # a list of words
apt-get download -qq -o APT::Sandbox::User=root $(sed 's/#.*//' "$list")
for package in *.deb; do
    dpkg-deb --extract "$package" "$root"
    name=$(dpkg-deb --field "$package" Package)
    dpkg-deb --field "$package" >"$status/$name"
    dpkg-deb --info "$package" md5sums >"$status/$name.md5sums"
done
cd "$root"
rm -r "$downloads"

# The licences stay.
find usr/share/doc -type f ! -name copyright -delete
find usr/share/doc -type l ! -exec test -e {} \; -delete
find usr/share/doc -depth -type d -empty -delete
rm -rf usr/share/bug usr/share/info usr/share/lintian usr/share/locale usr/share/man usr/share/python3
# Conversions of iconv, which no program here asks for.
rm -rf usr/lib/*/gconv
# Parts of Python that pyproxy does not import.
for module in pydoc_data test turtle.py venv; do
    rm -r usr/lib/python3.*/"$module"
done
find . -type f -perm /6000 -exec chmod a-s {} +

# What the maintainer scripts of libc-bin, base-passwd and iptables would write.
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >etc/nsswitch.conf
echo root:x:0:0:root:/root:/usr/sbin/nologin >etc/passwd
echo nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin >>etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
for program in iptables ip6tables; do
    for action in '' -save -restore; do
        ln -s "$program-nft$action" "usr/sbin/$program$action"
    done
done

# Every library that a file names must be here, but for those of Python's modules, which are left out.
loader=$(echo usr/lib/*/ld-linux-*.so.*)
find usr/bin usr/sbin usr/lib -type f \( -perm /111 -o -name '*.so*' \) |
    while read -r file; do
        missing=$(chroot . "/$loader" --list "/$file" 2>&1 |
            sed -n 's/.*: \(.*\): cannot open shared object file.*/\1/p')
        case "$missing,$file" in
            ,*) ;;
            *,*/lib-dynload/*) rm "$file" ;;
            *) echo "/$file needs $missing: add its package to $list" >&2 && exit 1 ;;
        esac
    done
