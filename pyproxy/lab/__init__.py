"""A cluster in miniature, on one machine: network namespaces, pods and a small API server."""
