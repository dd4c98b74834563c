"""Mistakes in the configuration that failed requests to the API server show."""

from __future__ import annotations

import ssl
import time

from urllib3.exceptions import ProxyError, SSLError

from pyproxy.errors import SourceError
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.source.client import ApiStatusError, UnreachableError
from pyproxy.source.credentials import CredentialError
from pyproxy.source.stream import MalformedResponseError

_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED of OpenSSL
_WRONG_NAME = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG")

_SERVER = "the server's address in the kubeconfig or --master"
_CHECK_PROXY = "unset HTTPS_PROXY, or add the API server's address to NO_PROXY"
_CHECK_CREDENTIALS = (
    "check the token or client certificate: it may have expired, or be of another cluster or of a "
    "deleted ServiceAccount"
)
_CHECK_ADDRESS = f"check {_SERVER}, and that the control plane runs"


def diagnose(error: SourceError, proxy: str = "") -> ConfigProblem | None:
    """Return the mistake that probably causes an error; None if it is a fault of the server.

    `proxy` is the URL of the HTTP proxy that requests go through, empty for none. Never blocks.
    """
    if isinstance(error, UnreachableError):
        topic, fix = _unreachable(error.__cause__, proxy)
    elif isinstance(error, CredentialError):
        topic, fix = ConfigTopic.API_CREDENTIALS, "correct the credentials in the kubeconfig"
    elif isinstance(error, MalformedResponseError):
        topic, fix = _intercepted(proxy)
    elif isinstance(error, ApiStatusError):
        found = _status(error, proxy)
        if found is None:
            return None
        topic, fix = found
    else:
        return None
    return ConfigProblem(topic, str(error), fix)


def _unreachable(cause: BaseException | None, proxy: str) -> tuple[ConfigTopic, str]:
    if isinstance(cause, ProxyError):
        return ConfigTopic.HTTP_PROXY, _CHECK_PROXY
    if isinstance(cause, SSLError):
        fix = _tls(cause)
        if proxy:
            fix += f"; the proxy {proxy} may intercept TLS: {_CHECK_PROXY}"
        return ConfigTopic.API_TLS, fix
    if proxy:
        return ConfigTopic.HTTP_PROXY, _CHECK_PROXY
    return ConfigTopic.API_UNREACHABLE, _CHECK_ADDRESS


def _tls(error: SSLError) -> str:
    """Return the fix for a failed TLS handshake."""
    inner = error.args[0] if error.args else None
    if isinstance(inner, ssl.SSLCertVerificationError):
        code = inner.verify_code
        if code in (_NOT_YET_VALID, _EXPIRED):
            now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            return f"check the clock of this node ({now} UTC), or renew the server's certificate"
        if code in _WRONG_NAME:
            return f"use an address that the server's certificate has: check {_SERVER}"
        return (
            "check certificate-authority in the kubeconfig: the CA did not sign the server's "
            "certificate"
        )
    if any(each in str(error) for each in _NO_TLS):
        return f"the server does not speak TLS on this port: check {_SERVER}"
    return f"check {_SERVER}, and the client certificate"


def _status(error: ApiStatusError, proxy: str) -> tuple[ConfigTopic, str] | None:
    if error.status == 407:
        return ConfigTopic.HTTP_PROXY, _CHECK_PROXY
    if error.needs_tls:
        return ConfigTopic.API_TLS, f"write https:// for http:// in {_SERVER}"
    if error.status == 401:
        return ConfigTopic.API_CREDENTIALS, _CHECK_CREDENTIALS
    if error.status == 403 and error.from_api:
        return _forbidden(is_anonymous="system:anonymous" in str(error))
    # Without a Status object, the answer is not the API server's.
    is_strange = not error.from_api and (error.status < 500 or proxy or error.is_page)
    return _intercepted(proxy) if is_strange else None


def _forbidden(*, is_anonymous: bool) -> tuple[ConfigTopic, str]:
    if is_anonymous:
        return ConfigTopic.API_CREDENTIALS, "give credentials in the kubeconfig"
    return ConfigTopic.API_FORBIDDEN, "bind the ClusterRole system:node-proxier to this user"


def _intercepted(proxy: str) -> tuple[ConfigTopic, str]:
    if proxy:
        fix = f"the proxy {proxy} may have answered in its place: {_CHECK_PROXY}"
        return ConfigTopic.HTTP_PROXY, fix
    return ConfigTopic.NOT_AN_API_SERVER, (
        f"an HTTP proxy or another server answers in place of the API server: check {_SERVER}"
    )
