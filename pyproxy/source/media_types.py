"""The media types of the Kubernetes API that pyproxy reads, and the header Accept.

Facts: the content negotiation of client-go and kube-apiserver v1.36. The server sends the first
type of the header that it has.
"""

from __future__ import annotations

JSON_TYPE = "application/json"
PROTOBUF_TYPE = "application/vnd.kubernetes.protobuf"
DEFAULT_ACCEPT = f"{PROTOBUF_TYPE},{JSON_TYPE}"
"""The header Accept of the default settings."""


def accepted(content_type: str, accept_content_types: str = "") -> str:
    """Return the header Accept for the settings of a client, in which a list overrides one type.

    Types that pyproxy cannot read are left out, and JSON is the last choice.
    """
    wanted = (_base(each) for each in (accept_content_types or content_type).split(","))
    known = [each for each in wanted if each in {JSON_TYPE, PROTOBUF_TYPE}]
    return ",".join(dict.fromkeys([*known, JSON_TYPE]))


def is_protobuf(content_type: str) -> bool:
    """Return whether the Content-Type of a response is Kubernetes' protobuf."""
    return _base(content_type) == PROTOBUF_TYPE


def _base(media_type: str) -> str:
    """Return a media type without its parameters, such as stream=watch."""
    return media_type.partition(";")[0].strip().lower()
