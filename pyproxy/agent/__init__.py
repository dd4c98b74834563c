"""The agent: the only place that ties source, policy and dataplane together."""

from pyproxy.agent.ending import Ending
from pyproxy.agent.wiring import cleanup, initialize, run

__all__ = ["Ending", "cleanup", "initialize", "run"]
