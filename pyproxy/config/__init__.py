"""The configuration of pyproxy: kube-proxy's flags and configuration file as typed settings."""

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import (
    Api,
    Conntrack,
    IptablesSettings,
    IpvsSettings,
    ListenAddress,
    LocalMode,
    LocalTraffic,
    Masquerade,
    NodePorts,
    Serving,
    Settings,
    SyncPeriods,
)

__all__ = [
    "Api",
    "Conntrack",
    "IptablesSettings",
    "IpvsSettings",
    "ListenAddress",
    "LocalMode",
    "LocalTraffic",
    "Masquerade",
    "NodePorts",
    "ProxyMode",
    "Serving",
    "Settings",
    "SyncPeriods",
]
