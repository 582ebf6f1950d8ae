"""How a producer reaches a daemon that asks who comes: its token, its trust, and how it is told no."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dolake.auth.gate import Gate
from dolake.auth.tls import Certificates, ServerTls, client_context
from dolake.auth.tokens import TokenBook
from dolake.cdc.client import Producer
from dolake.cdc.dial import RETRY_AFTER_S_MAX, TransportClosed, websocket_dial
from dolake.cdc.server import CdcServer, ServerPolicy
from dolake.clock import real_runtime
from dolake.config.access import TokenSettings
from dolake.errors import BatchRefused, CertificateRefused, ConfigurationError, DaemonUnreachable, DolakeError, Forbidden, Unauthorized
from dolake.ingest.service import IngestService
from dolake.storage.disk import LocalDisk
from tests.cdc.samples import raw_events
from tests.harness.access import grant, new_token
from tests.harness.certificates import Authority, self_signed
from tests.ingest.rig import ingest_settings

SHOP, READER = new_token(), new_token()
TOKENS = {"shop": grant(SHOP, sources=["orders"], tables=["orders"]), "reader": grant(READER, read=True)}


def serve(directory: Path, scene: Callable[[IngestService, str], Any], certificates: Certificates | None = None) -> None:
    """A whole ingest half over a real socket."""

    async def run() -> None:
        runtime = real_runtime()
        settings = ingest_settings(directory, tokens=TOKENS)
        tls = None if certificates is None else ServerTls(certificates)
        service = IngestService(runtime, LocalDisk(), settings, Gate(runtime.clock, TokenBook(settings.tokens), tls))
        await service.start()
        server = CdcServer(runtime, service.connect, ServerPolicy(frame_bytes_max=1 << 20), service.gate, service.metrics)
        with socket.create_server(("127.0.0.1", 0)) as listen:
            await server.start(listen)
            try:
                async with asyncio.timeout(40):
                    await scene(service, f"localhost:{listen.getsockname()[1]}/cdc")
            finally:
                server.stop_accepting()
                await service.stop()
                await server.close()

    asyncio.run(run())


def produce(
    url: str, token: str | None = None, tls: ssl.SSLContext | None = None, *, source: str = "orders", patience_s: float = 30
) -> Producer:
    return Producer(url, source, unreachable_s_max=patience_s, dial=websocket_dial(token, tls))


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("form", ["header", "query"])
def test_a_producer_with_a_good_token_sends(tmp_path: Path, form: str) -> None:
    async def scene(service: IngestService, address: str) -> None:
        url, token = (f"ws://{address}", SHOP) if form == "header" else (f"ws://{address}?token={SHOP}", None)
        async with produce(url, token) as producer:
            await producer.send(raw_events(0, 5))
        assert service.metrics.get("dolake_cdc_events_total") == 5

    serve(tmp_path, scene)


REFUSED: dict[str, tuple[str | None, str, type[DolakeError], str]] = {
    "none": (None, "orders", Unauthorized, "a token is needed"),
    "wrong": (new_token(), "orders", Unauthorized, "not known here"),
    "no sender": (READER, "orders", Forbidden, "the token 'reader' may not send"),
    "another's source": (SHOP, "payroll", BatchRefused, "forbidden: sourceDoId: the token 'shop' may send as `orders` only"),
}


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("case", REFUSED)
def test_a_producer_is_told_why_not_and_does_not_try_again(tmp_path: Path, case: str) -> None:
    token, source, error, words = REFUSED[case]

    async def scene(service: IngestService, address: str) -> None:
        with pytest.raises(error, match=words) as refusal:
            await produce(f"ws://{address}", token, source=source).__aenter__()
        assert refusal.value.exit_code == 5
        assert token is None or token not in str(refusal.value)

    serve(tmp_path, scene)


@pytest.mark.acceptance("AT-98")
def test_a_producer_whose_token_is_revoked_ends_with_the_reason_and_what_was_acked_stays(tmp_path: Path) -> None:
    async def scene(service: IngestService, address: str) -> None:
        producer = produce(f"ws://{address}", SHOP)

        async def work() -> None:
            async with producer:
                await producer.send(raw_events(0, 5))
                await producer.drain()
                service.gate.book = TokenBook({"reader": TokenSettings.model_validate(TOKENS["reader"])})
                await producer.send(raw_events(5, 5))

        with pytest.raises(BatchRefused, match="unauthorized: the token 'shop' was revoked"):
            await work()
        assert producer.acked_event_count == 5

    serve(tmp_path, scene)


@pytest.mark.acceptance("AT-97")
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("good", ""),
        ("expired", "certificate has expired"),
        ("wrong host", "Hostname mismatch"),
        ("self-signed", "self-signed certificate"),
        ("of another CA", "unable to get local issuer certificate"),
    ],
)
def test_a_producer_refuses_what_it_cannot_trust_at_once(tmp_path: Path, case: str, words: str) -> None:
    authority = Authority(tmp_path)
    pair = {
        "good": lambda: authority.issue("server"),
        "expired": lambda: authority.issue("server", days=-1),
        "wrong host": lambda: authority.issue("server", hosts="DNS:elsewhere.example"),
        "self-signed": lambda: self_signed(tmp_path),
        "of another CA": lambda: Authority(tmp_path, "another").issue("server"),
    }[case]()

    async def scene(service: IngestService, address: str) -> None:
        trust = client_context(str(authority.certificate))
        if not words:
            async with produce(f"wss://{address}", SHOP, trust) as producer:
                await producer.send(raw_events(0, 5))
            assert service.metrics.get("dolake_cdc_events_total") == 5
            return
        with pytest.raises(CertificateRefused, match=words) as refusal:
            await produce(f"wss://{address}?token={SHOP}", None, trust).__aenter__()
        assert refusal.value.exit_code == 3
        assert "--ca" in str(refusal.value)
        assert SHOP not in str(refusal.value)

    serve(tmp_path / "data", scene, Certificates.read(str(pair.certificate), str(pair.key)))


@pytest.mark.acceptance("AT-97")
@pytest.mark.parametrize("case", ["good", "none", "of another CA"])
def test_where_clients_must_show_a_certificate_none_comes_in_without(tmp_path: Path, case: str) -> None:
    authority = Authority(tmp_path)
    server, client, stranger = authority.issue("server"), authority.issue("client"), Authority(tmp_path, "another").issue("stranger")

    async def scene(service: IngestService, address: str) -> None:
        shown = {"good": client, "none": None, "of another CA": stranger}[case]
        files = (str(shown.certificate), str(shown.key)) if shown else ()
        producer = produce(f"wss://{address}", SHOP, client_context(str(authority.certificate), *files), patience_s=0)
        if case == "good":
            async with producer:
                await producer.send(raw_events(0, 5))
            return
        with pytest.raises(DaemonUnreachable, match="--certificate and --certificate-key") as refusal:
            await producer.__aenter__()
        assert refusal.value.exit_code == 3

    certificates = Certificates.read(str(server.certificate), str(server.key), str(authority.certificate))
    serve(tmp_path / "data", scene, certificates)


def test_plain_and_tls_that_meet_say_so(tmp_path: Path) -> None:
    pair = self_signed(tmp_path)

    async def plain_client(service: IngestService, address: str) -> None:
        with pytest.raises(DaemonUnreachable, match="wss://"):
            await produce(f"ws://{address}", SHOP, patience_s=0).__aenter__()

    async def plain_server(service: IngestService, address: str) -> None:
        with pytest.raises((DaemonUnreachable, CertificateRefused), match="TLS"):
            await produce(f"wss://{address}", SHOP, client_context(str(pair.certificate)), patience_s=0).__aenter__()

    serve(tmp_path / "one", plain_client, Certificates.read(str(pair.certificate), str(pair.key)))
    serve(tmp_path / "two", plain_server)


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("token", ["a b", "a\nX: y", "ä", ""])
def test_what_no_header_can_hold_is_refused_before_anything_is_sent(token: str) -> None:
    with pytest.raises(ConfigurationError, match="token: must be printable ASCII") as refusal:
        websocket_dial(token)
    assert not token or token not in str(refusal.value)


@pytest.mark.acceptance("AT-98")
def test_a_redirect_is_not_followed_with_the_token() -> None:
    requests: list[bytes] = []

    async def scene() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            port = server.sockets[0].getsockname()[1]
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:{port}/elsewhere\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server, asyncio.timeout(20):
            with pytest.raises(TransportClosed, match="302"):
                await websocket_dial(SHOP)(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/cdc")

    asyncio.run(scene())
    assert len(requests) == 1
    assert f"Authorization: Bearer {SHOP}".encode() in requests[0]


BUSY = {
    "too many requests": (b"429 Too Many Requests", b"1", 1.0),
    "unavailable": (b"503 Service Unavailable", b"1", 1.0),
    "a date": (b"503 Service Unavailable", b"Fri, 20 Nov 2026 22:00:00 GMT", 0.0),
    "nonsense": (b"429 Too Many Requests", b"-7", 0.0),
    "an age": (b"429 Too Many Requests", b"999999999", RETRY_AFTER_S_MAX),
}


@asynccontextmanager
async def busy(answer: bytes, times: int, address: str) -> AsyncIterator[tuple[str, list[float]]]:
    """A door in front of `address` that answers the first handshakes itself; its own address, and when each came."""
    came: list[float] = []
    open_writers: list[asyncio.StreamWriter] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(asyncio.get_running_loop().time())
        open_writers.append(writer)
        if len(came) <= times:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()
            return
        host, port = address.removesuffix("/cdc").split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        open_writers.append(far_writer)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}/cdc", came
        for writer in open_writers:
            writer.close()


@pytest.mark.acceptance("AT-10")
@pytest.mark.parametrize("case", ["too many requests", "unavailable"])
def test_a_daemon_that_is_too_busy_for_a_handshake_is_asked_again_when_it_says_and_not_given_up(tmp_path: Path, case: str) -> None:
    status, after, seconds = BUSY[case]
    answer = b"HTTP/1.1 %b\r\nRetry-After: %b\r\nContent-Length: 0\r\n\r\n" % (status, after)

    async def scene(service: IngestService, address: str) -> None:
        async with busy(answer, 2, address) as (door, came), produce(f"ws://{door}", SHOP, patience_s=0.01) as producer:
            await producer.send(raw_events(0, 5))
            await producer.drain()
        assert len(came) == 3
        assert all(later - earlier >= seconds * 0.99 for earlier, later in pairwise(came))
        assert service.metrics.get("dolake_cdc_events_total") == 5

    serve(tmp_path, scene)


@pytest.mark.parametrize("case", BUSY)
def test_what_an_answer_to_a_handshake_says_of_later(case: str) -> None:
    status, after, seconds = BUSY[case]

    async def scene() -> None:
        answer = b"HTTP/1.1 %b\r\nRetry-After: %b\r\nContent-Length: 0\r\n\r\n" % (status, after)
        async with busy(answer, 1, "") as (door, _):
            with pytest.raises(TransportClosed, match=f"HTTP {status[:3].decode()}") as closed:
                await websocket_dial()(f"ws://{door}")
        assert (closed.value.retry_after_s, closed.value.answered) == (seconds, True)

    asyncio.run(scene())


def test_a_gateway_without_a_daemon_behind_it_is_nobody_there() -> None:
    async def scene() -> None:
        async with busy(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", 10**6, "") as (door, _):
            with pytest.raises(DaemonUnreachable, match="HTTP 502"):
                await produce(f"ws://{door}", patience_s=0.2).__aenter__()

    asyncio.run(scene())
