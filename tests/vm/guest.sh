#!/bin/sh
# The first process of the virtual machine: make its root a place to work in, and run a command there.
#
# The kernel's command line says which tree, vm_tree, where its modules are, vm_modules, and busybox,
# vm_busybox; what it does not know itself comes here as a variable. /run/results/command is a script of the shell.
# Busybox runs this, and is one file: to read programs from this root takes seconds each.
#
# The root that the machine starts with is read over 9p without any cache, page by page. The same
# root is mounted once more with a cache, below a layer in memory, so that everything may be written
# to and nothing of it outlasts the machine. /run/results alone is shared in earnest.
set -eu
tree=${vm_tree:?} modules=${vm_modules:?} busybox=${vm_busybox:?}
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Whatever happens, the machine ends: QEMU takes a restart for the end.
trap 'echo b >/proc/sysrq-trigger' EXIT

"$busybox" mount -t proc proc /proc  # by its path alone until there is /proc/self/exe
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mkdir /run/host /run/upper /run/work /run/root
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$options" host /run/host
mount -t overlay -o lowerdir=/run/host,upperdir=/run/upper,workdir=/run/work overlay /run/root
root=/run/root
for folder in proc sys dev; do
    mount --bind "/$folder" "$root/$folder"
done
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/lib/modules"
mount -t devpts devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/results" "$root/run/image"
mount --bind "$root$modules" "$root/lib/modules"
mount -t 9p -o "rw,cache=none,$options" results "$root/run/results"

# What the kernel would load by itself, it would look for on the slow root, one by one.
chroot "$root" /sbin/modprobe -a -q virtio_blk ext4 veth bridge dummy sctp sctp_diag xfrm_user \
    nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_numgen nft_reject_inet nft_fib_inet \
    nft_counter nf_conntrack_netlink \
    ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh ip_vs_mh || true
if [ -b /dev/vda ]; then
    # What tools/vm-image.sh has copied lies on a disk under its own path, and is quicker there.
    mount -o ro /dev/vda "$root/run/image"
    while read -r folder; do
        mount --bind "$root/run/image$folder" "$root$folder"
    done <"$root/run/image/folders"
fi
ip link set lo up

# What one program has compiled is there for the next, and goes with the layer in memory.
chroot "$root" /usr/bin/env -C "$tree" HOME=/root PYTHONUNBUFFERED=1 sh /run/results/command
