"""pyproxy: a Service proxy for Kubernetes nodes."""

__version__ = "0.1.0"
