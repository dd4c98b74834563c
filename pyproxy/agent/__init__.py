"""The agent: the only place that ties source, policy and dataplane together."""

from pyproxy.agent.wiring import cleanup, initialize, run

__all__ = ["cleanup", "initialize", "run"]
