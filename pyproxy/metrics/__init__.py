"""The metrics of an agent, under kube-proxy's names where it has one for the same count.

Each part of the agent has a class of its own here, with the methods that it calls; `Metrics` has an
object of each, and all collectors. Facts: the names, labels and buckets are those of kube-proxy
v1.36.
"""

from pyproxy.metrics.registry import CONTENT_TYPE, Metrics

__all__ = ["CONTENT_TYPE", "Metrics"]
