"""Credentials that change on disk while the agent runs: tokens, exec plugins, certificates."""

from __future__ import annotations

import itertools
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.apiserver.access import PROXY

from pyproxy.source.connect import connect
from tests.chaos.objects import numbered_service, numbered_slice
from tests.chaos.table_agent import TableAgent, api_server
from tests.source.kubeconfigs import exec_plugin, kubeconfig, write
from tests.source.scripted import NODES, Exchange, Pace, Server, quiet, serving
from tests.waiting import until

# From a folder and a server's URL: a kubeconfig's path and a function that replaces its token.
Kind = Callable[[Path, str], tuple[str, Callable[[str], object]]]


@contextmanager
def agent_with(config: str) -> Iterator[TableAgent]:
    with TableAgent(connect(config, ""), 5.0, Pace()).running() as rig:
        yield rig


def by_token_file(folder: Path, url: str) -> tuple[str, Callable[[str], object]]:
    """Return a kubeconfig with a token file, as the kubelet replaces it."""
    token = folder / "token"

    def rotate(value: str) -> None:
        new = folder / "token.new"
        new.write_text(value)
        new.rename(token)

    return write(folder / "config", kubeconfig(url, {"tokenFile": str(token)})), rotate


def by_exec_plugin(folder: Path, url: str) -> tuple[str, Callable[[str], object]]:
    """Return a kubeconfig with an exec plugin."""
    value = folder / "value"
    user = exec_plugin(folder, f"$(cat {value})")
    return write(folder / "config", kubeconfig(url, user)), value.write_text


def by_kubeconfig(folder: Path, url: str) -> tuple[str, Callable[[str], object]]:
    """Return a kubeconfig that contains the token."""
    path = folder / "config"
    return str(path), lambda value: write(path, kubeconfig(url, {"token": value}))


@pytest.mark.parametrize("kind", [by_token_file, by_exec_plugin, by_kubeconfig])
def test_an_expired_token_is_read_again(tmp_path: Path, kind: Kind) -> None:
    with api_server(token="first", proxy_token="unused") as server:
        config, rotate = kind(tmp_path, server.url)
        rotate("first")
        with agent_with(config) as rig:
            rig.until_equal(server)
            rig.dataplane.keep()
            server.settings = msgspec.structs.replace(server.settings, token="second")
            server.close_watches()
            server.load([numbered_service(10), numbered_slice(10, [1])])
            waits = len(rig.clock.waits)
            rig.until(lambda: len(rig.clock.waits) > waits + 10, "rejections")
            assert rig.dataplane.lost == []
            assert rig.health.is_healthy()
            rotate("second")
            rig.until_equal(server)
            assert rig.dataplane.lost == []


def test_rights_that_are_revoked_and_granted_again(tmp_path: Path) -> None:
    with api_server(token="admin", proxy_token="proxy") as server:
        verbs = PROXY.verbs
        assert verbs is not None
        config = write(tmp_path / "config", kubeconfig(server.url, {"token": "proxy"}))
        with agent_with(config) as rig:
            rig.until_equal(server)
            rig.dataplane.keep()
            taken = verbs.pop("services")
            try:
                server.close_watches()
                server.load([numbered_service(10), numbered_slice(10, [1])])
                waits = len(rig.clock.waits)
                rig.until(lambda: len(rig.clock.waits) > waits + 10, "rejections")
                assert rig.dataplane.lost == []
            finally:
                verbs["services"] = taken
            rig.until_equal(server)


class Authority:
    """A certificate authority that issues client certificates into one pair of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        self.cert, self.key = folder / "client.crt", folder / "client.key"

    def openssl(self, command: str) -> None:
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)

    def authority(self, name: str) -> None:
        self.openssl(
            f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            f"-subj /CN={name} -addext subjectAltName=IP:127.0.0.1 "
            f"-keyout {self.folder}/{name}.key -out {self.folder}/{name}.crt"
        )

    def issue(self, by: str) -> None:
        """Replace the key, then the certificate, as other programs do."""
        number, folder = next(self._numbers), self.folder
        self.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
            f"-subj /CN=client{number} -keyout {folder}/new.key -out {folder}/new.csr"
        )
        self.openssl(
            f"x509 -req -in {folder}/new.csr -CA {folder}/{by}.crt -CAkey {folder}/{by}.key "
            f"-days 2 -out {folder}/new.crt"
        )
        (folder / "new.key").rename(self.key)
        (folder / "new.crt").rename(self.cert)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    made = Authority(tmp_path)
    for name in ("server", "former", "latter"):
        made.authority(name)
    made.issue("former")
    return made


def context(authority: Authority, *, trusting: str) -> ssl.SSLContext:
    """Return a server context that requires a client certificate of one authority."""
    made = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(authority.folder / f"{trusting}.crt")
    )
    made.load_cert_chain(authority.folder / "server.crt", authority.folder / "server.key")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def test_a_replaced_client_certificate_is_used(authority: Authority, tmp_path: Path) -> None:
    with serving(_short, tls=context(authority, trusting="former")) as server:
        user = {"client-certificate": str(authority.cert), "client-key": str(authority.key)}
        trust = {"certificate-authority": str(tmp_path / "server.crt")}
        config = write(tmp_path / "config", kubeconfig(server.url, user, trust))
        with agent_with(config) as rig:
            rig.until(rig.health.is_healthy, "the first commit")
            # The authority has been replaced, so every new connection needs a new certificate.
            _trust(server, context(authority, trusting="latter"))
            waits = len(rig.clock.waits)
            rig.until(lambda: len(rig.clock.waits) > waits + 10, "refused connections")
            seen = len(server.seen)
            authority.issue("latter")
            until(lambda: len(server.seen) > seen + 3)
            assert rig.health.is_healthy()


def test_a_replaced_authority_is_trusted(authority: Authority, tmp_path: Path) -> None:
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes((tmp_path / "server.crt").read_bytes())
    with serving(_short, tls=context(authority, trusting="former")) as server:
        user = {"client-certificate": str(authority.cert), "client-key": str(authority.key)}
        trust = {"certificate-authority": str(trusted)}
        config = write(tmp_path / "config", kubeconfig(server.url, user, trust))
        with agent_with(config) as rig:
            rig.until(rig.health.is_healthy, "the first commit")
            authority.authority("server")
            _trust(server, context(authority, trusting="former"))
            waits = len(rig.clock.waits)
            rig.until(lambda: len(rig.clock.waits) > waits + 10, "refused connections")
            seen = len(server.seen)
            trusted.write_bytes((tmp_path / "server.crt").read_bytes())
            until(lambda: len(server.seen) > seen + 3)


def _short(exchange: Exchange) -> None:
    """Return a handler that closes the connection after each request."""
    if exchange.query.get("resourceVersion"):
        exchange.begin()
        exchange.end()
        exchange.close_connection = True
    elif exchange.query.get("watch"):
        exchange.begin()
        # The first commit waits for the Node.
        here = [("ADDED", {"metadata": {"name": "node-a"}})] if exchange.route == NODES else []
        exchange.events([*here, _end()])
        exchange.end()
        exchange.close_connection = True
    else:
        quiet(exchange)


def _end() -> tuple[str, object]:
    annotations = {"k8s.io/initial-events-end": "true"}
    return "BOOKMARK", {"metadata": {"resourceVersion": "1", "annotations": annotations}}


def _trust(server: Server, tls: ssl.SSLContext) -> None:
    server.tls = tls
