"""What a person asks of pyproxy: kube-proxy's flags and its file, read into typed settings."""

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
    Pace,
    ProxyMode,
    Serving,
    Settings,
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
    "Pace",
    "ProxyMode",
    "Serving",
    "Settings",
]
