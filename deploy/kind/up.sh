#!/bin/sh
# Create a kind cluster with pyproxy in place of kube-proxy.
#
#   deploy/kind/up.sh && deploy/kind/smoke.sh
#   kind delete cluster --name pyproxy
#
# Needs docker, kind and kubectl. IMAGE may name an existing image, MODE is the proxy mode (nftables
# unless given), and NODE_IMAGE an image of kind's nodes.
set -eu
cd "$(dirname "$0")/../.."

if [ -z "${IMAGE:-}" ]; then
    tools/image.sh pyproxy:dev
elif [ "$IMAGE" != pyproxy:dev ]; then
    docker tag "$IMAGE" pyproxy:dev
fi
# Nodes do not become ready without a Service proxy, so kind must not wait for them.
kind create cluster --config deploy/kind/cluster.yaml ${NODE_IMAGE:+"--image=$NODE_IMAGE"}
kind load docker-image pyproxy:dev --name pyproxy
kubectl kustomize deploy/overlays/kind | sed "s/mode: nftables/mode: ${MODE:-nftables}/" |
    kubectl --context kind-pyproxy apply -f -
kubectl --context kind-pyproxy -n kube-system rollout status daemonset/pyproxy --timeout=180s
kubectl --context kind-pyproxy wait --for=condition=Ready nodes --all --timeout=180s
kubectl --context kind-pyproxy -n kube-system rollout status deployment/coredns --timeout=180s
