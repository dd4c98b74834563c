"""The device kube-ipvs0 on a real kernel: whose it is, and its deletion by another program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.ipvs.kernel import Kernel, has_own_device
from pyproxy.errors import StaleStateError
from pyproxy.model.address import parse_address
from tests.namespaces import empty_namespace

ADDRESSES = [parse_address("10.96.0.1"), parse_address("fd00:96::1")]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with empty_namespace("ipvs") as made:
        yield made


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("stale", [True, False], ids=["found before", "not found"])
def test_a_deleted_device_is_stale_state_and_no_service_s_fault(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, adds: bool, stale: bool
) -> None:
    # Not a dummy device, because some kernels have none.
    namespace.ip(["link add kube-ipvs0 type veth peer name peer"])
    with closing(namespace.call(Kernel)) as kernel:
        device = kernel.addresses().device
        assert not kernel.change_addresses([], ADDRESSES)
        kernel.delete_device()
        if stale:
            monkeypatch.setattr(kernel, "_device", lambda: device)
        with pytest.raises(StaleStateError, match="kube-ipvs0 is gone"):
            kernel.change_addresses(*(([], ADDRESSES) if adds else (ADDRESSES, [])))


def test_the_alias_tells_our_device_from_kube_proxy_s(namespace: Namespace) -> None:
    assert not namespace.call(has_own_device)
    namespace.ip(["link add kube-ipvs0 type veth peer name peer"])
    with closing(namespace.call(Kernel)) as kernel:
        assert not kernel.addresses().labelled
        assert not namespace.call(has_own_device)
        kernel.label_device()
        assert kernel.addresses().labelled
    assert namespace.call(has_own_device)
    assert "alias pyproxy" in namespace.run(["ip", "link", "show", "kube-ipvs0"]).stdout
