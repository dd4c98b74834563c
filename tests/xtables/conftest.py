"""The fixtures of iptables mode's tests: a network namespace, and both flavours."""

from tests.dataplane.iptables.conftest import flavour, namespace

__all__ = ["flavour", "namespace"]
