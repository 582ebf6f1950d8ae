"""Certificates: what is refused, by name and rule; and a context that changes under open connections."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dolake.auth.tls import Certificates, ServerTls, client_context
from dolake.errors import ConfigurationError
from tests.harness.certificates import Authority, Pair, encrypted, self_signed

LOOPS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


def read(pair: Pair, client_ca: Path | None = None) -> Certificates:
    return Certificates.read(str(pair.certificate), str(pair.key), None if client_ca is None else str(client_ca))


def make(directory: Path) -> dict[str, Any]:
    authority = Authority(directory)
    pair, other = authority.issue("server"), authority.issue("other")
    (directory / "noise").write_bytes(b"\xff\xfe\x00")
    (directory / "empty").write_text("")
    (directory / "cut.pem").write_text(pair.certificate.read_text()[:200] + "\n-----END CERTIFICATE-----\n")
    return {"pair": pair, "other": other, "ca": authority.certificate, "encrypted": encrypted(pair, directory / "encrypted.key")}


# what is given instead of → the certificate, the key, the client CA; what the mistake says
BAD: dict[str, tuple[dict[str, str], str, str]] = {
    "certificate absent": ({"certificate": "none.pem"}, "tls.certificate", "can be read"),
    "key absent": ({"key": "none.key"}, "tls.key", "can be read"),
    "certificate a directory": ({"certificate": "."}, "tls.certificate", "can be read"),
    "certificate noise": ({"certificate": "noise"}, "tls.certificate", "PEM"),
    "certificate empty": ({"certificate": "empty"}, "tls.certificate", "no BEGIN CERTIFICATE"),
    "certificate cut": ({"certificate": "cut.pem"}, "tls.certificate", "certificates in PEM"),
    "certificate a key": ({"certificate": "server.key"}, "tls.certificate", "no BEGIN CERTIFICATE"),
    "key empty": ({"key": "empty"}, "tls.key", "private key in PEM"),
    "key a certificate": ({"key": "server.pem"}, "tls.key", "private key in PEM"),
    "key of another": ({"key": "other.key"}, "tls.key", "belongs to the certificate"),
    "key encrypted": ({"key": "encrypted.key"}, "tls.key", "must not be encrypted"),
    "client CA absent": ({"client_ca": "none.pem"}, "tls.client_ca", "can be read"),
    "client CA cut": ({"client_ca": "cut.pem"}, "tls.client_ca", "certificates in PEM"),
}


@pytest.mark.acceptance("AT-97", "AT-100")
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_rule(tmp_path: Path, case: str) -> None:
    make(tmp_path)
    given, field, rule = BAD[case]
    paths = {name: str(tmp_path / file) for name, file in {"certificate": "server.pem", "key": "server.key", **given}.items()}
    with pytest.raises(ConfigurationError) as refusal:
        Certificates.read(**paths)
    (mistake,) = refusal.value.mistakes
    assert (mistake.field, mistake.value) == (field, paths[field.removeprefix("tls.")])
    assert rule in mistake.rule


def test_every_file_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Certificates.read(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c"))
    assert [mistake.field for mistake in refusal.value.mistakes] == ["tls.certificate", "tls.key", "tls.client_ca"]


def test_a_key_is_not_printed(tmp_path: Path) -> None:
    assert "PRIVATE" not in repr(read(make(tmp_path)["pair"]))


@pytest.mark.parametrize(
    ("arguments", "field", "rule"),
    [
        (("none.pem", None, None), "--ca", "CA certificates in PEM"),
        (("noise", None, None), "--ca", "CA certificates in PEM"),
        ((None, "server.pem", None), "--certificate-key", "together with --certificate"),
        ((None, None, "server.key"), "--certificate", "together with --certificate-key"),
        ((None, "server.pem", "other.key"), "--certificate-key", "belongs to the certificate"),
    ],
)
def test_a_client_s_bad_files_are_named_too(tmp_path: Path, arguments: tuple[str | None, ...], field: str, rule: str) -> None:
    make(tmp_path)
    with pytest.raises(ConfigurationError) as refusal:
        client_context(*(argument and str(tmp_path / argument) for argument in arguments))
    (mistake,) = refusal.value.mistakes
    assert mistake.field == field
    assert rule in mistake.rule


@contextlib.asynccontextmanager
async def echoing(tls: ServerTls) -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def dial(port: int, trusted: Path, client: Pair | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    shown = (str(client.certificate), str(client.key)) if client else ()
    context = client_context(str(trusted), *shown)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")


async def says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        writer.write(b"hello\n")
        await writer.drain()
        return await reader.readline() == b"hello\n"
    except (ConnectionError, ssl.SSLError):
        return False


@pytest.mark.acceptance("AT-97")
@pytest.mark.parametrize("loop", LOOPS)
def test_new_connections_get_the_new_certificate_and_open_ones_go_on(tmp_path: Path, loop: str) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")

    async def scene() -> None:
        tls = ServerTls(read(old.issue("first")))
        async with asyncio.timeout(30), echoing(tls) as port:
            first = await dial(port, old.certificate)
            assert await says(*first)
            tls.replace(read(new.issue("second")))
            with pytest.raises(ssl.SSLCertVerificationError):
                await dial(port, old.certificate)
            second = await dial(port, new.certificate)
            assert await says(*second)
            assert await says(*first)
            with pytest.raises(ValueError, match="private key in PEM"):
                tls.replace(Certificates(new.certificate.read_text(), "nonsense"))
            third = await dial(port, new.certificate)
            assert await says(*third)
            for _, writer in (first, second, third):
                writer.close()

    LOOPS[loop](scene())


@pytest.mark.acceptance("AT-97")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_ca_can_be_changed_too(tmp_path: Path, loop: str) -> None:
    authority, first, second = (Authority(tmp_path, name) for name in ("ca", "first", "second"))
    pair, one, two = authority.issue("server"), first.issue("one"), second.issue("two")

    async def scene() -> None:
        tls = ServerTls(read(pair, first.certificate))

        async def welcome(client: Pair | None) -> bool:
            try:
                reader, writer = await dial(port, authority.certificate, client)
            except (ConnectionError, ssl.SSLError):
                return False
            try:
                return await says(reader, writer)
            finally:
                writer.close()

        async with asyncio.timeout(30), echoing(tls) as port:
            assert [await welcome(client) for client in (one, two, None, self_signed(tmp_path))] == [True, False, False, False]
            tls.replace(read(pair, second.certificate))
            assert [await welcome(client) for client in (one, two, None)] == [False, True, False]
            tls.replace(read(pair))
            assert await welcome(None)

    LOOPS[loop](scene())
