"""The rules that kube-proxy v1.36 writes in nftables mode for one Service with one endpoint.

The form is that of `tests/takeover/data/kube-proxy-nftables.txt`, as `nft list ruleset` printed it
after kube-proxy v1.36.2. Sets and chains that this Service does not use are there, and empty.
"""

from __future__ import annotations

_RULES = """\
table ip kube-proxy {
    set hairpin-connections {
        type ipv4_addr . ipv4_addr . inet_proto . inet_service
        elements = { ENDPOINT . ENDPOINT . tcp . PORT }
    }
    set cluster-ips { type ipv4_addr; elements = { SERVICE } }
    set nodeport-ips { type ipv4_addr; elements = { 172.30.0.11 } }
    map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
    map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
    map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
    map service-nodeports { type inet_proto . inet_service : verdict; }
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { SERVICE . tcp . PORT : goto service }
    }
    chain service {
        meta l4proto tcp dnat ip to numgen random mod 1 map { 0 : ENDPOINT . PORT }
    }
    chain filter-prerouting-pre-dnat {
        type filter hook prerouting priority dstnat - 10; policy accept;
        ct state new jump firewall-check
    }
    chain filter-output-pre-dnat {
        type filter hook output priority -110; policy accept;
        ct state new jump firewall-check
    }
    chain filter-input {
        type filter hook input priority filter; policy accept;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }
    chain filter-forward {
        type filter hook forward priority filter; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain filter-output {
        type filter hook output priority filter; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }
    chain nat-output {
        type nat hook output priority -100; policy accept;
        jump services
    }
    chain nat-postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        jump masquerading
    }
    chain nodeport-endpoints-check {
        ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
    }
    chain service-endpoints-check {
        ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }
    chain firewall-check {
        ip daddr . meta l4proto . th dport vmap @firewall-ips
    }
    chain services {
        ip daddr @cluster-ips ip saddr != 10.128.0.0/9 meta mark set meta mark | 0x4000
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }
    chain masquerading {
        meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random
        ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections \\
            masquerade fully-random
    }
    chain cluster-ips-check {
        ip daddr @cluster-ips reject
        ip daddr 10.96.0.0/12 drop
    }
}
"""


def kube_proxy_rules(service: str, endpoint: str, port: int) -> str:
    """Return the text for `nft -f` of a TCP Service on `port`, with its endpoint on the same port.

    Addresses are IPv4, in text.
    """
    return (
        _RULES.replace("SERVICE", service).replace("ENDPOINT", endpoint).replace("PORT", str(port))
    )
