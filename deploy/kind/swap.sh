#!/bin/sh
# Replace kube-proxy by pyproxy and pyproxy by kube-proxy under load, in a new kind cluster.
#
#   IMAGE=pyproxy:dev MODE=iptables deploy/kind/swap.sh
#   kind delete cluster --name pyproxy-swap
#
# Clients in pods open connections all the time, and any that fails is an error. MODE is kube-proxy's
# and pyproxy's proxy mode (nftables unless given), and NODE_IMAGE an image of kind's nodes.
set -eu
cd "$(dirname "$0")/../.."
k() { kubectl --context kind-pyproxy-swap "$@"; }

if [ -z "${IMAGE:-}" ]; then
    tools/image.sh pyproxy:dev
elif [ "$IMAGE" != pyproxy:dev ]; then
    docker tag "$IMAGE" pyproxy:dev
fi
kind create cluster --name pyproxy-swap ${NODE_IMAGE:+"--image=$NODE_IMAGE"} --wait 180s --config - <<END
apiVersion: kind.x-k8s.io/v1alpha4
kind: Cluster
networking: {kubeProxyMode: ${MODE:-nftables}}
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
END
kind load docker-image pyproxy:dev --name pyproxy-swap

# Wait for all nodes, and then for the load to see the new proxy.
rollout() {
    k -n kube-system rollout status daemonset/kube-proxy --timeout=300s
    sleep 10
}

k apply -f deploy/kind/smoke.yaml
k -n smoke rollout status deployment/web --timeout=180s
k apply -f deploy/kind/load.yaml
k -n smoke wait --for=jsonpath='{.status.ready}'=4 job/client --timeout=180s
sleep 10

echo "from kube-proxy to pyproxy"
k -n kube-system set image daemonset/kube-proxy kube-proxy=pyproxy:dev
rollout
echo "back to kube-proxy"
k -n kube-system rollout undo daemonset/kube-proxy
rollout
kubectl kustomize deploy/cleanup | sed 's/pyproxy:[0-9][^ ]*/pyproxy:dev/' |
    k apply --namespace kube-system -f -
k -n kube-system rollout status daemonset/pyproxy-cleanup --timeout=180s
sleep 10

for pod in $(k -n smoke get pods -l app=client -o name); do
    k -n smoke exec "$pod" -- touch /tmp/stop
done
k -n smoke wait --for=condition=complete job/client --timeout=60s || failed=yes
k -n smoke logs -l app=client --prefix --tail=20
[ -z "${failed:-}" ] || { echo "connections have failed" >&2; exit 1; }
echo "ok: no connection failed"
