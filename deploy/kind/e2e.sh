#!/bin/sh
# Run upstream's end-to-end specs for Services against the cluster of up.sh.
#
#   deploy/kind/e2e.sh [RESULTS]       logs and JUnit files in RESULTS, e2e-results unless given
#
# The specs come from the conformance image of the cluster's own version. FOCUS and SKIP replace the
# regular expressions that choose them. Needs docker, kind and kubectl; takes about 20 minutes.
set -eu
mkdir -p "${1:-e2e-results}"
results=$(cd "${1:-e2e-results}" && pwd)

version=$(kubectl --context kind-pyproxy version -o json |
    sed -n '/"serverVersion"/,$ s/.*"gitVersion": "\(.*\)".*/\1/p')
kind get kubeconfig --name pyproxy >"$results/kubeconfig"
trap 'rm -f "$results/kubeconfig"' EXIT

# SCTP needs a kernel module, NFAcct is of kube-proxy's iptables mode, and the others disturb
# specs that run beside them.
status=0
docker run --rm --network host --volume "$results:/results" \
    --env KUBECONFIG=/results/kubeconfig --env RESULTS_DIR=/results \
    --env E2E_PROVIDER=skeleton --env E2E_PARALLEL=y \
    --env E2E_FOCUS="${FOCUS:-\[sig-network\] (Services|Networking Granular|EndpointSlice|Conntrack|KubeProxy|Traffic)}" \
    --env E2E_SKIP="${SKIP:-Disruptive|Serial|SCTP|NFAcct}" \
    --env E2E_EXTRA_ARGS="--num-nodes=2 --delete-namespace=true" \
    "registry.k8s.io/conformance:$version" >"$results/output" 2>&1 || status=$?
# Without a terminal, ginkgo prints a summary of the failed specs at the end.
sed -n '/Summarizing/,$p' "$results/output"
grep -E '^Ran [0-9]+ of' "$results/output" || { tail -n 50 "$results/output" >&2; exit 1; }
if grep -q '^Ran 0 of' "$results/output"; then
    echo "no spec matches" >&2
    exit 1
fi
exit "$status"
