#!/bin/sh
# Check the cluster of up.sh: cluster IP by name, node ports, and pods that come and go.
set -eu
cd "$(dirname "$0")"
k() { kubectl --context kind-pyproxy "$@"; }

k apply -f smoke.yaml
trap 'k delete namespace smoke --wait=false >/dev/null' EXIT
k -n smoke rollout status deployment/web --timeout=180s

# Print how many pods respond to 60 requests, or nothing if a request fails.
responding() {
    found=$(k -n smoke exec deployment/web -- sh -ec "
        for i in \$(seq 60); do curl --fail --silent --max-time 2 http://$1/hostname; echo; done") ||
        return 1
    echo "$found" | sort -u | grep -c .
}

# Until DNS resolves the name, a failure says nothing about the proxy.
k -n smoke exec deployment/web -- sh -c 'until nslookup web.smoke >/dev/null; do sleep 1; done'
[ "$(responding web.smoke)" = 3 ] || { echo "not all pods respond on the cluster IP" >&2; exit 1; }
for node in $(k get nodes -o jsonpath='{.items[*].status.addresses[?(@.type=="InternalIP")].address}'); do
    [ "$(responding "$node:30080")" = 3 ] || { echo "not all pods respond on $node" >&2; exit 1; }
done
k -n smoke rollout restart deployment/web
k -n smoke rollout status deployment/web --timeout=180s
[ "$(responding web.smoke)" = 3 ] || { echo "not all new pods respond" >&2; exit 1; }
k -n smoke scale deployment/web --replicas=1
k -n smoke wait --for=jsonpath='{.status.replicas}'=1 deployment/web --timeout=60s
[ "$(responding web.smoke)" = 1 ] || { echo "a deleted pod still responds" >&2; exit 1; }
echo "ok: cluster IP, node ports, and pods that come and go"
