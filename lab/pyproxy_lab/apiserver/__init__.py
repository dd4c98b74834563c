"""A small API server that speaks the Kubernetes protocol for what a Service proxy needs.

It holds namespaces, nodes, services, pods, endpointslices and events in memory. The lab,
tests and benchmarks. `kubectl get`, `apply` and `delete` work against it, as do list and watch
clients. It is no part of a real cluster: it keeps nothing on disk, and leaves out
metadata.managedFields and server-side apply. Only what a Service proxy lists has a protobuf form.
"""
