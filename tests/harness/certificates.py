"""Certificates made on the spot by the `openssl` command: good ones, and each kind of bad one."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
LOCAL = "DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


class Authority:
    """A CA in a directory of its own."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self.certificate, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl("req", "-x509", *_CURVE, "-keyout", self._key, "-out", self.certificate, "-days", 2, "-subj", f"/CN=dolake test {name}")

    def issue(self, name: str, *, hosts: str = LOCAL, days: int = 2) -> Pair:
        """`days` below 0 is a certificate that has expired."""
        pair = Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={hosts}\n")
        _openssl("req", *_CURVE, "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}")
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *signer, "-days", days, "-extfile", extensions, "-out", pair.certificate)
        return pair


def self_signed(directory: Path, name: str = "self-signed", *, hosts: str = LOCAL) -> Pair:
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    subject = ("-days", 2, "-subj", f"/CN={name}", "-addext", f"subjectAltName={hosts}")
    _openssl("req", "-x509", *_CURVE, "-keyout", pair.key, "-out", pair.certificate, *subject)
    return pair


def encrypted(pair: Pair, path: Path) -> Path:
    """The same key behind a passphrase."""
    _openssl("ec", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", path)
    return path
