#!/bin/sh
# The virtual machine's first process: make a writable root and run /run/results/command there.
#
# The kernel's command line sets the variables vm_tree (the working tree), vm_modules (the kernel's
# modules) and vm_busybox. Busybox runs this script because reading any other program from the first
# root takes seconds.
#
# The machine's first root is read over 9p without a cache, page by page. The same root is mounted
# again with a cache, below a layer in memory: everything is writable, and only /run/results
# outlasts the machine.
set -eu
tree=${vm_tree:?} modules=${vm_modules:?} busybox=${vm_busybox:?}
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Always end the machine: QEMU exits at a restart.
trap 'echo b >/proc/sysrq-trigger' EXIT

"$busybox" mount -t proc proc /proc  # by its path until there is /proc/self/exe
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

# The kernel's own requests for a module run modprobe in the root of process 1.
mkdir "$root/run/first"
cd "$root"
"$busybox" pivot_root . run/first
cd /

# The kernel would load these itself one by one, each with a program.
modprobe -a -q virtio_blk ext4 veth bridge dummy sctp sctp_diag xfrm_user \
    nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_numgen nft_reject_inet nft_fib_inet \
    nft_counter nf_conntrack_netlink \
    ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh ip_vs_mh || true
if [ -b /dev/vda ]; then
    # Folders that tools/vm-image.sh copied to a disk are faster to read there.
    mount -o ro /dev/vda /run/image
    while read -r folder; do
        mount --bind "/run/image$folder" "$folder"
    done </run/image/folders
fi
ip link set lo up

# Python compiles modules into the layer in memory, for the next program.
/usr/bin/env -C "$tree" HOME=/root PYTHONUNBUFFERED=1 sh /run/results/command
