"""The settings in force, written out for people: the pages /configz and /flagz."""

from __future__ import annotations

import msgspec

from pyproxy.config import durations
from pyproxy.config.settings import ListenAddress, NodePorts, Settings
from pyproxy.model.address import address_text


def flagz(settings: Settings) -> str:
    """One line a flag, name and value, after a heading."""
    lines = (f"{flag.name.removeprefix('--')} {flag.value}".rstrip() for flag in settings.flags)
    return "\n".join(
        ("pyproxy flagz", "For people: the form of this page may change.", "", *lines, "")
    )


def configz(settings: Settings) -> bytes:
    """JSON in the shape of a KubeProxyConfiguration (v1alpha1), of the fields that do something."""
    traffic, pace = settings.local_traffic, settings.pace
    node_address = settings.node_address
    configuration = {
        "bindAddress": address_text(node_address) if node_address else "",
        "bindAddressHardFail": settings.serving.hard_fail,
        "clientConnection": {"kubeconfig": settings.api.kubeconfig},
        "clusterCIDR": ",".join(map(str, traffic.cluster_networks)),
        "detectLocal": {
            "bridgeInterface": traffic.bridge_interface,
            "interfaceNamePrefix": traffic.interface_name_prefix,
        },
        "detectLocalMode": traffic.mode.value,
        "healthzBindAddress": _listen_text(settings.serving.health),
        "hostnameOverride": settings.node_name,
        "logging": {"format": "text", "verbosity": settings.verbosity},
        "metricsBindAddress": _listen_text(settings.serving.metrics),
        "mode": settings.mode.value,
        "nftables": {
            "masqueradeAll": settings.masquerade.everything,
            "masqueradeBit": settings.masquerade.bit,
            "minSyncPeriod": durations.text(pace.min_sync_period),
            "syncPeriod": durations.text(pace.sync_period),
        },
        "nodePortAddresses": _node_port_texts(settings.node_ports),
    }
    return msgspec.json.encode({"kubeproxy.config.k8s.io": configuration})


def _listen_text(address: ListenAddress | None) -> str:
    return str(address) if address else ""


def _node_port_texts(where: NodePorts) -> list[str]:
    words = (
        ("primary", where.primary),
        ("all", where.everywhere),
        ("localhost", where.localhost),
    )
    return [word for word, chosen in words if chosen] + [str(net) for net in where.networks]
