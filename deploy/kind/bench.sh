#!/bin/sh
# Measure pyproxy and then kube-proxy in the cluster of up.sh, with the same Services.
#
#   deploy/kind/bench.sh [SERVICES [CHANGES]]      1000 Services and 100 changes unless given
#
# Each line has the proxy, the mean seconds of a sync, and its CPU seconds and resident memory on one
# worker, over the changes of one EndpointSlice. Afterwards the cluster runs kube-proxy.
set -eu
cd "$(dirname "$0")/../.."
services=${1:-1000} changes=${2:-100}
worker=pyproxy-worker
k() { kubectl --context kind-pyproxy "$@"; }

objects() {
    for number in $(seq "$services"); do
        cat <<END
---
{apiVersion: v1, kind: Service, metadata: {name: s$number, namespace: bench},
 spec: {ports: [{name: p, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
 metadata: {name: s$number, namespace: bench, labels: {kubernetes.io/service-name: s$number}},
 ports: [{name: p, port: 80}], endpoints: [{addresses: [10.244.250.1]}, {addresses: [10.244.250.2]}]}
END
    done
}

# Sum the samples of one metric in a worker's /metrics.
metric() {
    docker exec "$worker" curl -s http://127.0.0.1:10249/metrics |
        awk -v name="$1" '{split($1, parts, "{")} parts[1] == name {sum += $NF} END {print sum + 0}'
}

measure() {
    sync=kubeproxy_sync_proxy_rules_duration_seconds
    seconds=$(metric ${sync}_sum) count=$(metric ${sync}_count) cpu=$(metric process_cpu_seconds_total)
    for number in $(seq "$changes"); do
        k -n bench patch endpointslice s1 --type=merge >/dev/null \
            --patch "{\"endpoints\": [{\"addresses\": [\"10.244.250.$((number % 200 + 3))\"]}]}"
    done
    sleep 10
    echo "$(metric ${sync}_sum) $(metric ${sync}_count) $(metric process_cpu_seconds_total)" \
        "$(metric process_resident_memory_bytes)" |
        awk -v proxy="$1" -v s="$seconds" -v n="$count" -v c="$cpu" '{
            printf "%s: %.4f s a sync, %.2f s of CPU, %d MB\n", proxy, ($1 - s) / ($2 - n), $3 - c, $4 / 1e6
        }'
}

k create namespace bench
objects | k create -f - >/dev/null
sleep 30
measure pyproxy

k delete -k deploy/overlays/kind
docker exec pyproxy-control-plane kubeadm init phase addon kube-proxy \
    --kubeconfig /etc/kubernetes/admin.conf --pod-network-cidr 10.244.0.0/16 \
    --control-plane-endpoint pyproxy-control-plane:6443
k -n kube-system get configmap kube-proxy -o yaml | sed 's/mode: ""/mode: nftables/' | k apply -f -
k -n kube-system rollout restart daemonset/kube-proxy
k -n kube-system rollout status daemonset/kube-proxy --timeout=180s
kubectl kustomize deploy/cleanup | sed 's/pyproxy:0.1.0/pyproxy:dev/' | k apply -f -
k -n kube-system rollout status daemonset/pyproxy-cleanup --timeout=180s
k -n kube-system delete daemonset pyproxy-cleanup
sleep 30
measure "kube-proxy, nftables"
k delete namespace bench --wait=false
