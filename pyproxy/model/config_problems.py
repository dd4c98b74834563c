"""Mistakes in the configuration of one node: shown in its log, status, explain, and a metric."""

from __future__ import annotations

import enum

import msgspec

from pyproxy.errors import one_line

_LONGEST_TEXT = 640


class ConfigTopic(enum.Enum):
    """The kinds of mistakes; the values are those of the label `problem` of the metric."""

    CONFIG_FILE = "configuration_file"
    NODE_NOT_FOUND = "node_not_found"
    NODE_WITHOUT_POD_NETWORKS = "node_without_pod_networks"
    NODE_ADDRESSES_ELSEWHERE = "node_addresses_elsewhere"
    CLUSTER_CIDR_MISSING = "cluster_cidr_missing"
    CLUSTER_CIDR_FAMILY = "cluster_cidr_family"
    FAMILY_NOT_SERVED = "family_not_served"
    LOCAL_NETWORK_LEFT_OUT = "local_network_left_out"
    API_UNREACHABLE = "api_server_unreachable"
    API_TLS = "api_server_tls"
    API_CREDENTIALS = "api_server_credentials"
    API_FORBIDDEN = "api_server_forbidden"
    API_SERVER_IS_SERVICE = "api_server_is_service"
    NOT_AN_API_SERVER = "not_an_api_server"
    HTTP_PROXY = "http_proxy"
    CLOCK_SKEW = "clock_skew"


class ConfigProblem(msgspec.Struct, frozen=True):
    """One mistake: its topic, the mistake with its effect, and the fix.

    Both texts are made printable and shortened, because an API server writes parts of them.
    """

    topic: ConfigTopic
    message: str
    fix: str

    def __post_init__(self) -> None:
        for part in ("message", "fix"):
            text = one_line(getattr(self, part), _LONGEST_TEXT)
            msgspec.structs.force_setattr(self, part, text)

    def __str__(self) -> str:
        return f"{self.message}: {self.fix}"
