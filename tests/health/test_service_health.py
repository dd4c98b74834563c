import errno
import gc
import os
import socket
from collections.abc import Collection, Iterator
from concurrent.futures import Future

import pytest

from pyproxy.errors import Problem, ProblemReason
from pyproxy.health import service_health
from pyproxy.health.check_port import Place, ServiceHealthCheck
from pyproxy.health.http import HttpThread, Listener
from pyproxy.health.service_health import ListenOptions, ServiceHealthServer
from pyproxy.model.address import Address, Family, Port, parse_address
from pyproxy.model.objects import ObjectName
from tests.health.conftest import Clock, Get
from tests.ports import reserved_port
from tests.waiting import PATIENCE

LOOPBACK4, LOOPBACK6 = parse_address("127.0.0.1"), parse_address("::1")
OTHER_LOOPBACK = parse_address("127.0.0.2")
ABSENT = parse_address("192.0.2.1")
WEB, API = ObjectName("conformance", "web"), ObjectName("conformance", "api")


class Proxy:
    healthy = True

    def is_healthy(self) -> bool:
        return self.healthy


@pytest.fixture(autouse=True)
def _ports_close_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the thread that closes ports, which a loaded machine may delay."""
    monkeypatch.setattr(service_health, "_CLOSING_TIMEOUT", 10.0)


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
def problems() -> list[Problem]:
    return []


@pytest.fixture
def checks(
    http_thread: HttpThread, proxy: Proxy, problems: list[Problem], clock: Clock
) -> Iterator[ServiceHealthServer]:
    options = ListenOptions(1000)
    checks = ServiceHealthServer(http_thread, options, proxy.is_healthy, problems.append, clock)
    checks.listen_on([LOOPBACK4])
    yield checks
    checks.close()


def check(port: int, endpoints: int = 1, *families: Family) -> ServiceHealthCheck:
    return ServiceHealthCheck(Port(port), dict.fromkeys(families or Family, endpoints))


def listens(port: int, address: Address = LOOPBACK4) -> bool:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    with socket.socket(family) as sock:
        return sock.connect_ex((socket.inet_ntop(family, address), port)) == 0


@pytest.mark.parametrize("path", ["/", "/healthz", "/any/path?at=all"])
def test_the_response_is_that_of_kube_proxy_on_any_path(
    checks: ServiceHealthServer, get: Get, free_port: int, path: str
) -> None:
    checks.update({WEB: check(free_port)})
    response = get(free_port, path)
    assert response.status == 200
    assert response.body == (
        '{\n\t"service": {\n\t\t"namespace": "conformance",\n\t\t"name": "web"\n\t},\n'
        '\t"localEndpoints": 1,\n\t"serviceProxyHealthy": true\n}'
    )
    assert response.headers == {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": "1",
        "Content-Length": str(len(response.body)),
        "Connection": "close",
    }


@pytest.mark.parametrize(
    "case", [(3, True, 200), (0, True, 503), (3, False, 503), (0, False, 503)], ids=str
)
def test_status_weight_and_health(
    checks: ServiceHealthServer, proxy: Proxy, get: Get, free_port: int, case: tuple[int, bool, int]
) -> None:
    endpoints, proxy.healthy, status = case
    checks.update({WEB: check(free_port, endpoints)})
    response = get(free_port)
    assert response.status == status
    assert response.headers["X-Load-Balancing-Endpoint-Weight"] == str(endpoints)
    assert f'"localEndpoints": {endpoints},' in response.body
    assert f'"serviceProxyHealthy": {str(proxy.healthy).lower()}' in response.body


def test_endpoints_change_without_a_new_listener(
    checks: ServiceHealthServer, get: Get, free_port: int
) -> None:
    checks.update({WEB: check(free_port, 1)})
    with socket.create_connection(("127.0.0.1", free_port), timeout=PATIENCE) as before:
        checks.update({WEB: check(free_port, 0)})
        before.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert before.recv(100).startswith(b"HTTP/1.1 503 ")
    checks.change({WEB: check(free_port, 2)})
    assert get(free_port).status == 200


def test_the_port_is_freed_when_the_service_goes(
    checks: ServiceHealthServer, free_port: int
) -> None:
    checks.update({WEB: check(free_port)})
    assert listens(free_port)
    checks.update({})
    assert not listens(free_port)
    checks.change({WEB: check(free_port)})
    assert listens(free_port)
    checks.change({WEB: None, API: None})
    assert not listens(free_port)


def test_a_port_moves_from_one_service_to_another(
    checks: ServiceHealthServer, problems: list[Problem], get: Get, free_port: int
) -> None:
    checks.update({WEB: check(free_port)})
    checks.update({API: check(free_port)})
    assert '"name": "api"' in get(free_port).body
    assert problems == []


def test_services_swap_their_ports(
    checks: ServiceHealthServer, problems: list[Problem], get: Get, free_port: int
) -> None:
    with reserved_port() as other_port:
        checks.update({WEB: check(free_port), API: check(other_port)})
        checks.update({WEB: check(other_port), API: check(free_port)})
        assert '"name": "api"' in get(free_port).body
        assert '"name": "web"' in get(other_port).body
    assert problems == []


def test_only_the_given_addresses_listen(checks: ServiceHealthServer, free_port: int) -> None:
    checks.update({WEB: check(free_port)})
    assert listens(free_port)
    assert not listens(free_port, OTHER_LOOPBACK)
    checks.listen_on([OTHER_LOOPBACK])
    assert not listens(free_port)
    assert listens(free_port, OTHER_LOOPBACK)
    checks.listen_on([])
    assert not listens(free_port, OTHER_LOOPBACK)


@pytest.mark.parametrize(
    ("families", "listening"),
    [
        ((Family.IPV4, Family.IPV6), [LOOPBACK4, LOOPBACK6]),
        ((Family.IPV4,), [LOOPBACK4]),
        ((Family.IPV6,), [LOOPBACK6]),
    ],
)
def test_a_service_listens_in_its_own_families(
    checks: ServiceHealthServer,
    free_port: int,
    families: tuple[Family, ...],
    listening: list[Address],
) -> None:
    checks.listen_on([LOOPBACK4, LOOPBACK6])
    checks.update({WEB: check(free_port, 1, *families)})
    assert [a for a in (LOOPBACK4, LOOPBACK6) if listens(free_port, a)] == listening
    checks.change({WEB: check(free_port, 1, Family.IPV4)})
    assert listens(free_port)
    assert not listens(free_port, LOOPBACK6)


def test_each_family_reports_its_own_number(
    checks: ServiceHealthServer, get: Get, free_port: int
) -> None:
    checks.listen_on([LOOPBACK4, LOOPBACK6])
    checks.update({WEB: ServiceHealthCheck(Port(free_port), {Family.IPV4: 2, Family.IPV6: 0})})
    assert '"localEndpoints": 2,' in get(free_port).body
    response = get(free_port, host="::1")
    assert (response.status, response.headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")


def test_a_used_port_is_one_problem_and_retried(
    checks: ServiceHealthServer,
    problems: list[Problem],
    taken: socket.socket,
    get: Get,
    free_port: int,
    clock: Clock,
) -> None:
    port = taken.getsockname()[1]
    checks.update({WEB: check(port), API: check(free_port)})
    expected = Problem(
        kind="Service",
        name="conformance/web",
        field="spec.healthCheckNodePort",
        message=f"cannot listen on 127.0.0.1:{port} (Address already in use): load balancers that "
        "check it send nothing to this node until the port is free",
        reason=ProblemReason.FAILED_TO_START_HEALTHCHECK,
    )
    assert problems == [expected]
    assert list(checks.problems) == [expected]
    assert get(free_port).status == 200
    checks.retry()
    checks.update({WEB: check(port, 2), API: check(free_port)})
    assert problems == [expected]
    taken.close()
    clock.seconds += 30
    checks.retry()
    assert get(port).headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert list(checks.problems) == []
    assert not checks.incomplete_ports()


def test_a_port_used_on_one_address_serves_on_the_others(
    checks: ServiceHealthServer, problems: list[Problem], taken: socket.socket
) -> None:
    port = taken.getsockname()[1]
    checks.listen_on([LOOPBACK4, OTHER_LOOPBACK])
    checks.update({WEB: check(port)})
    assert listens(port, OTHER_LOOPBACK)
    assert len(problems) == 1


def test_two_services_that_claim_one_port(
    checks: ServiceHealthServer, problems: list[Problem], get: Get, free_port: int, clock: Clock
) -> None:
    checks.update({WEB: check(free_port)})
    checks.change({API: check(free_port)})
    assert [problem.name for problem in problems] == ["conformance/api"]
    assert '"name": "web"' in get(free_port).body
    checks.change({WEB: None})
    clock.seconds += 1
    checks.retry()
    assert '"name": "api"' in get(free_port).body


def test_a_deleted_service_has_no_problem(
    checks: ServiceHealthServer, taken: socket.socket
) -> None:
    checks.update({WEB: check(taken.getsockname()[1])})
    checks.update({})
    assert list(checks.problems) == []
    assert not checks.incomplete_ports()


def test_a_missing_address_is_not_a_problem_and_retried(
    checks: ServiceHealthServer, problems: list[Problem], free_port: int
) -> None:
    checks.listen_on([LOOPBACK4, ABSENT])
    checks.update({WEB: check(free_port)})
    assert listens(free_port)
    assert problems == []
    assert checks.incomplete_ports() == 1
    checks.listen_on([LOOPBACK4])
    assert not checks.incomplete_ports()


def test_many_services_need_no_threads_of_their_own(
    checks: ServiceHealthServer, get: Get, free_port: int
) -> None:
    addresses = [Address(bytes((127, 0, 1, host))) for host in range(1, 101)]
    names = [ObjectName("many", f"s{number}") for number in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as b:
        ports = [free_port, one.getsockname()[1], b.getsockname()[1]]
    checks.listen_on(addresses)
    checks.update({name: check(port) for name, port in zip(names, ports, strict=True)})
    while checks.retry():
        pass
    assert all(listens(port, address) for port in ports for address in addresses)
    assert '"name": "s2"' in get(ports[2], host="127.0.1.100").body


def everywhere(
    http_thread: HttpThread, problems: list[Problem], clock: Clock, most: int = 1000
) -> ServiceHealthServer:
    options = ListenOptions(most, everywhere=frozenset(Family), own_ports=frozenset({10256}))
    checks = ServiceHealthServer(http_thread, options, lambda: True, problems.append, clock)
    checks.listen_on([LOOPBACK4, LOOPBACK6, OTHER_LOOPBACK])
    return checks


def open_sockets() -> int:
    gc.collect()  # no other test's descriptors end meanwhile
    return len(os.listdir("/proc/self/fd"))


def test_one_socket_serves_all_addresses_of_both_families(
    http_thread: HttpThread, problems: list[Problem], clock: Clock, get: Get, free_port: int
) -> None:
    checks = everywhere(http_thread, problems, clock)
    before = open_sockets()
    checks.update({WEB: ServiceHealthCheck(Port(free_port), {Family.IPV4: 2, Family.IPV6: 0})})
    assert open_sockets() == before + 1
    assert get(free_port, host="127.0.0.2").headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert get(free_port, host="::1").status == 503
    checks.change({WEB: check(free_port, 1, Family.IPV4)})
    assert listens(free_port)
    assert not listens(free_port, LOOPBACK6)
    checks.close()
    assert not listens(free_port)


def test_a_port_that_one_address_lacks_is_served_on_the_others(
    http_thread: HttpThread,
    problems: list[Problem],
    clock: Clock,
    taken: socket.socket,
    get: Get,
) -> None:
    port = taken.getsockname()[1]
    checks = everywhere(http_thread, problems, clock)
    checks.update({WEB: check(port)})
    assert get(port, host="127.0.0.2").status == get(port, host="::1").status == 200
    (problem,) = problems
    assert f"127.0.0.1:{port} (Address already in use)" in problem.message
    taken.close()
    clock.seconds += 1
    checks.retry()
    assert get(port).status == 200
    assert not checks.incomplete_ports()


@pytest.mark.parametrize("port", [22, 10250, 10256])
def test_no_service_has_a_health_check_on_the_nodes_own_ports(
    http_thread: HttpThread, problems: list[Problem], clock: Clock, port: int
) -> None:
    checks = everywhere(http_thread, problems, clock)
    checks.update({WEB: check(port)})
    (problem,) = problems
    assert problem.message.startswith(f"port {port} belongs to ")
    clock.seconds += 100
    checks.retry()
    assert not listens(port)
    assert checks.incomplete_ports() == 1
    checks.update({})
    assert not checks.incomplete_ports()


def test_more_listeners_than_the_limit_are_problems_and_served_later(
    http_thread: HttpThread, problems: list[Problem], clock: Clock, get: Get, free_port: int
) -> None:
    checks = everywhere(http_thread, problems, clock, most=1)
    checks.update({API: check(free_port)})
    with socket.create_server(("127.0.0.1", 0)) as sock:
        other_port = sock.getsockname()[1]
    checks.change({WEB: check(other_port)})
    assert [problem.name for problem in problems] == ["conformance/web"]
    assert "Too many open files" in problems[0].message
    checks.change({API: None})
    clock.seconds += 1
    checks.retry()
    assert '"name": "web"' in get(other_port).body


def test_retries_are_few_at_once_and_further_and_further_apart(
    http_thread: HttpThread, problems: list[Problem], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def bind(place: Place, port: Port, queues: int) -> tuple[socket.socket, ...]:
        nonlocal tries
        tries += 1
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Place, "bind", bind)
    checks = everywhere(http_thread, problems, clock)
    count, at_once = 300, 16
    checks.update({ObjectName("many", f"s{n}"): check(30000 + n) for n in range(count)})
    assert (tries, len(problems)) == (at_once, at_once)
    each_second = []
    for _ in range(60):
        before = tries
        clock.seconds += 1
        more = True
        while more:
            in_one_call = tries
            more = checks.retry()
            assert tries - in_one_call <= at_once
        each_second.append(tries - before)
    assert sum(each_second) <= 7 * count
    assert len(problems) == count


def test_problems_are_few_lines(
    http_thread: HttpThread, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    checks = everywhere(http_thread, [], clock)
    for number in range(100):
        checks.change({WEB: check(10250 if number % 2 else 22)})
    assert len(caplog.messages) == 10
    clock.seconds += 61
    checks.retry()
    assert caplog.messages[10:] == ["90 more problems of health-check node ports, not logged"]


def test_ports_close_together(
    http_thread: HttpThread, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    close = HttpThread.close

    def count(self: HttpThread, listeners: Collection[Listener]) -> Future[None]:
        closed.append(len(listeners))
        return close(self, listeners)

    monkeypatch.setattr(HttpThread, "close", count)
    checks = ServiceHealthServer(
        http_thread, ListenOptions(1000), lambda: True, lambda problem: None, clock
    )
    checks.listen_on([LOOPBACK4, OTHER_LOOPBACK])
    names = [ObjectName("many", f"s{number}") for number in range(8)]
    checks.update({name: check(31000 + number) for number, name in enumerate(names)})
    while checks.retry():
        pass
    checks.listen_on([LOOPBACK4])
    checks.update({name: check(32000 + number) for number, name in enumerate(names)})
    while checks.retry():
        pass
    checks.close()
    assert closed == [8, 8, 8]


def test_many_ports_open_a_part_at_a_time(
    checks: ServiceHealthServer, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_health, "_AT_ONCE", 10)
    names = [ObjectName("many", f"s{number}") for number in range(25)]
    checks.update({name: check(31100 + number) for number, name in enumerate(names)})
    left = [checks.incomplete_ports()]
    for _ in range(3):
        checks.retry()
        left.append(checks.incomplete_ports())
    assert left == [15, 5, 0, 0]
    assert all(get(31100 + number).status == 200 for number in range(25))


def test_slow_ports_open_in_smaller_parts(
    checks: ServiceHealthServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = Place.bind

    def slow(place: Place, port: Port, queues: int) -> tuple[socket.socket, ...]:
        clock.seconds += 0.0006
        return bind(place, port, 1)

    monkeypatch.setattr(Place, "bind", slow)
    names = [ObjectName("many", f"s{number}") for number in range(6)]
    checks.update({name: check(31200 + number) for number, name in enumerate(names)})
    left = [checks.incomplete_ports()]
    while checks.retry():
        left.append(checks.incomplete_ports())
    assert [*left, checks.incomplete_ports()] == [4, 2, 0]
