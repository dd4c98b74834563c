#!/bin/sh
# Runs in the virtual machine: make its root a place to work in, and run a command there.
#
#   guest.sh TREE MODULES COMMAND...
#
# The root that the machine starts with is read over 9p without any cache, page by page. The same
# root is mounted once more with a cache, below a layer in memory, so that everything may be written
# to and nothing of it outlasts the machine. TREE/.vm/results alone is shared in earnest.
set -eu
tree=$1 modules=$2
shift 2

mount -t tmpfs tmpfs /run
mkdir /run/host /run/upper /run/work /run/root
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$options" host /run/host
mount -t overlay -o lowerdir=/run/host,upperdir=/run/upper,workdir=/run/work overlay /run/root
root=/run/root
for folder in proc sys dev; do
    mount --rbind "/$folder" "$root/$folder"
done
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/results" "$root/lib/modules"
mount --bind "$root$modules" "$root/lib/modules"
mount -t 9p -o "rw,cache=none,$options" results "$root/run/results"
if [ -b /dev/vda ]; then
    # What tools/vm-image.sh has copied lies on a disk under its own path, and is quicker there.
    modprobe -a -q virtio_blk ext4
    mkdir /run/image
    mount -o ro /dev/vda /run/image
    while read -r folder; do
        mount --bind "/run/image$folder" "$root$folder"
    done </run/image/folders
fi
ip link set lo up

# What the kernel would load by itself, it would look for on the slow root, one by one.
chroot "$root" modprobe -a -q veth bridge dummy sctp xfrm_user \
    nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_numgen nft_reject_inet nft_fib_inet \
    nft_counter nf_conntrack_netlink \
    ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh ip_vs_mh || true
# What one program has compiled is there for the next: it costs an agent more than all else at its
# start, and goes with the layer in memory.
exec chroot "$root" env -C "$tree" PATH="$PATH:/usr/sbin:/sbin" PYTHONUNBUFFERED=1 "$@"
