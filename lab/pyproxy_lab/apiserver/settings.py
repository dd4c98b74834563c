"""The settings of an API server."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_CLUSTER_IPS: tuple[Network, ...] = (
    ipaddress.IPv4Network("10.96.0.0/12"),
    ipaddress.IPv6Network("fd00:10:96::/108"),
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The server's address, its tokens, and the ranges that it allocates from.

    The server listens in the network namespace `netns`, empty for this process's own; port 0 is any
    free port. With `secure` it listens over TLS too, on free ports of `host` and of this process's
    127.0.0.1, with a certificate of its own, because kubectl and kube-proxy send no token without
    TLS. Without `token` every request has all rights. `proxy_token` has the rights of a Service
    proxy. `cluster_ips` are one network, or one of each family, the primary one first. `history`
    counts the changes of each kind that a watch can go back; `bookmark_interval` is in seconds.
    Without `protobuf` objects are sent as JSON alone, and without `streaming_lists`
    sendInitialEvents is invalid, as without the feature WatchList. Watches time out `speed` times
    as fast as their clients ask.
    """

    netns: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    secure: bool = False
    token: str = ""
    proxy_token: str = ""
    cluster_ips: tuple[Network, ...] = DEFAULT_CLUSTER_IPS
    first_node_port: int = 30000
    last_node_port: int = 32767
    history: int = 20000
    bookmark_interval: float = 60.0
    protobuf: bool = True
    streaming_lists: bool = True
    speed: float = 1.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
