#!/bin/sh
# Create a kind cluster with pyproxy in place of kube-proxy.
#
#   deploy/kind/up.sh && deploy/kind/smoke.sh
#   kind delete cluster --name pyproxy
#
# Needs docker, kind and kubectl. IMAGE may name an existing image.
set -eu
cd "$(dirname "$0")/../.."

if [ -z "${IMAGE:-}" ]; then
    tools/image.sh pyproxy:dev
elif [ "$IMAGE" != pyproxy:dev ]; then
    docker tag "$IMAGE" pyproxy:dev
fi
# Nodes do not become ready without a Service proxy, so kind must not wait for them.
kind create cluster --config deploy/kind/cluster.yaml
kind load docker-image pyproxy:dev --name pyproxy
kubectl --context kind-pyproxy apply -k deploy/overlays/kind
kubectl --context kind-pyproxy -n kube-system rollout status daemonset/pyproxy --timeout=180s
kubectl --context kind-pyproxy wait --for=condition=Ready nodes --all --timeout=180s
kubectl --context kind-pyproxy -n kube-system rollout status deployment/coredns --timeout=180s
