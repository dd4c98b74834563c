"""pyproxy: a Service proxy for Kubernetes nodes."""

from importlib.metadata import version

__version__ = version("pyproxy")
