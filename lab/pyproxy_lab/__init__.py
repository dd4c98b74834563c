"""A cluster in miniature, on one machine: network namespaces, pods and a small API server."""

__version__ = "0.1.0"
