"""pyproxy: a Service proxy for Kubernetes nodes."""

__version__ = "0.1.0"

KUBERNETES_VERSION = "1.36.2"
"""The Kubernetes whose kube-proxy this version replaces."""
