#!/bin/sh
# Install the system packages behind the commands named as arguments, where they are missing.
#
#   tools/system-packages.sh nft ip conntrack
#
# It installs on Debian and Ubuntu, as root. Elsewhere it prints the missing packages: tests without
# their tools are skipped with the reason, and the demo names the tool that it lacks.
set -eu

package_of() {
    case "$1" in
        nft) echo nftables ;;
        ip) echo iproute2 ;;
        ps) echo procps ;;
        qemu-system-x86_64) echo qemu-system-x86 ;;
        depmod) echo kmod ;;
        busybox) echo busybox-static ;;
        debian-keys) echo debian-archive-keyring ;;
        seccomp-profile) echo golang-github-containers-common ;;
        venv) echo python3-venv ;;
        *) echo "$1" ;;
    esac
}

is_here() {
    case "$1" in
        venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null ;;
        # guest.sh runs before any library can be loaded, so busybox must be static.
        busybox) command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 ;;
        seccomp-profile) [ -e /usr/share/containers/seccomp.json ] ;;
        # Ubuntu has no keys of Debian's archive by default.
        debian-keys) [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ;;
        *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
    esac
}

missing=
for need in "$@"; do
    is_here "$need" || missing="$missing $(package_of "$need")"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing on this machine (root on Debian or Ubuntu would install it):$missing" >&2
    exit 0
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
