#!/bin/sh
# Does the cluster of up.sh serve? Cluster IP by name, node port, and pods that come and go.
set -eu
cd "$(dirname "$0")"
k() { kubectl --context kind-pyproxy "$@"; }

k apply -f smoke.yaml
trap 'k delete namespace smoke --wait=false >/dev/null' EXIT
k -n smoke rollout status deployment/web --timeout=180s

# Print how many pods answer 60 requests, and nothing where one fails.
answering() {
    found=$(k -n smoke exec deployment/web -- sh -ec "
        for i in \$(seq 60); do curl --fail --silent --max-time 2 http://$1/hostname; echo; done") ||
        return 1
    echo "$found" | sort -u | grep -c .
}

# Until DNS has its first answer it is not the proxy that is tested.
k -n smoke exec deployment/web -- sh -c 'until nslookup web.smoke >/dev/null; do sleep 1; done'
[ "$(answering web.smoke)" = 3 ] || { echo "not all pods answer on the cluster IP" >&2; exit 1; }
for node in $(k get nodes -o jsonpath='{.items[*].status.addresses[?(@.type=="InternalIP")].address}'); do
    [ "$(answering "$node:30080")" = 3 ] || { echo "not all pods answer on $node" >&2; exit 1; }
done
k -n smoke rollout restart deployment/web
k -n smoke rollout status deployment/web --timeout=180s
[ "$(answering web.smoke)" = 3 ] || { echo "not all new pods answer" >&2; exit 1; }
k -n smoke scale deployment/web --replicas=1
k -n smoke wait --for=jsonpath='{.status.replicas}'=1 deployment/web --timeout=60s
[ "$(answering web.smoke)" = 1 ] || { echo "a pod that has gone still answers" >&2; exit 1; }
echo "ok: cluster IP, node ports, and pods that come and go"
