from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from pyproxy.errors import UsageError
from pyproxy.source.tls_files import tls_file

PEM = b"-----BEGIN CERTIFICATE-----\n"


def test_a_path_stays_a_path(tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    file.write_bytes(PEM)
    assert tls_file(str(file), None) == str(file)
    assert tls_file(None, None) == ""


def test_data_go_before_a_path_into_a_file_that_only_the_owner_reads() -> None:
    written = tls_file("/nowhere", base64.b64encode(PEM).decode())
    assert Path(written).read_bytes() == PEM
    assert stat.S_IMODE(os.stat(written).st_mode) == 0o600


def test_equal_data_share_a_file_until_it_is_gone() -> None:
    data = base64.b64encode(PEM + b"shared").decode()
    written = tls_file(None, data)
    assert tls_file(None, data) == written
    os.unlink(written)
    assert Path(tls_file(None, data)).read_bytes() == PEM + b"shared"


def test_certificates_that_are_issued_again_and_again_leave_few_files() -> None:
    authority = base64.b64encode(PEM + b"authority").decode()
    paths = []
    for number in range(100):
        paths.append(tls_file(None, base64.b64encode(PEM + b"%d" % number).decode()))
        # Each time that credentials are read, the authority's certificate is read too.
        assert Path(tls_file(None, authority)).read_bytes() == PEM + b"authority"
    left = [path for path in paths if os.path.exists(path)]
    assert left == paths[-len(left) :]
    assert 10 < len(left) < 50


def test_a_missing_file() -> None:
    with pytest.raises(UsageError, match=r"file does not exist: /nowhere/ca\.crt"):
        tls_file("/nowhere/ca.crt", None)


def test_data_that_are_not_base64() -> None:
    with pytest.raises(ValueError, match="base64"):
        tls_file(None, "a")
