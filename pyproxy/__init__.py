"""pyproxy: a Service proxy for Kubernetes nodes."""

__version__ = "0.1.0"

KUBERNETES_VERSION = "1.36.2"
"""The Kubernetes whose kube-proxy this version replaces."""

ARCHITECTURES = {"aarch64": "arm64", "i686": "386", "x86_64": "amd64"}
"""Go's names of architectures, where they differ from the kernel's."""
