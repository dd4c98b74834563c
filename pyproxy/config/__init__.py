"""What a person asks of pyproxy: flags in kube-proxy's names, read into typed settings."""

from pyproxy.config.settings import (
    Api,
    Conntrack,
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
