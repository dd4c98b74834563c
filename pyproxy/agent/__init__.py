"""The agent: the only place that ties source, policy and dataplane together."""

from pyproxy.agent.run import cleanup, run

__all__ = ["cleanup", "run"]
