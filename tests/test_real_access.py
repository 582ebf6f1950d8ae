"""Tokens, TLS and reloads with whole daemons: who comes in, who does not, and who notices when that changes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from tests.harness.access import new_token, section
from tests.harness.certificates import Authority, Pair
from tests.harness.daemon import Daemon, clean_environment, dolake_command, request, status
from tests.harness.oracle import ledger_event
from tests.harness.source import batch_message, connect_message, conversation, schema_message
from tests.harness.waiting import wait_until

SHOP, READER, OLD, GONE, WRONG = (new_token() for _ in range(5))
UNPACED = {"DOLAKE_LIMITS_CONNECTIONS_PER_S": "100000"}  # All of them come from one address, again and again.
SECTIONS = {
    "shop": section("shop", SHOP, sources=["shop-*"], tables=["public.*"]),
    "reader": section("reader", READER, read=True),
    "old": section("old", OLD, sources=["*"], tables=["*"], read=True, expires="2020-01-01T00:00:00Z"),
    "gone": section("gone", GONE, sources=["*"], tables=["*"], read=True),
}


def write_tokens(path: Path, *names: str) -> None:
    """All at once, as an editor does it."""
    path.with_suffix(".new").write_text("".join(SECTIONS[name] for name in names))
    path.with_suffix(".new").rename(path)


def daemon_with_tokens(directory: Path, *names: str, **settings: str) -> Daemon:
    """Its tokens are in DIR.tokens, which may be written again."""
    tokens = directory / "tokens.toml"
    write_tokens(tokens, *names)
    return Daemon(directory / "data", {**UNPACED, "DOLAKE_AUTH_TOKENS_FILE": str(tokens), **settings})


def batch(source: str, number: int, table: str = "public.orders") -> dict[str, Any]:
    return batch_message(source, number, [ledger_event(number * 3 + place, table) for place in range(3)])


def answer_of(url: str, token: str = "", tls: ssl.SSLContext | None = None, data: bytes | None = None) -> tuple[int, str]:
    """Status and body of a GET, or of a POST of `data`."""
    asked = request(url, token)
    asked.data = data
    asked.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(asked, timeout=20, context=tls) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def handshake(url: str, token: str = "") -> int:
    """The status with which a websocket handshake is answered."""
    try:
        async with conversation(url, token):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has known four tokens, and revoked one of them."""
    directory = tmp_path_factory.mktemp("guarded")
    with daemon_with_tokens(directory, "shop", "reader", "old", "gone") as daemon:
        daemon.start()
        assert asyncio.run(handshake(daemon.wait_ready().cdc, GONE)) == 101
        write_tokens(directory / "tokens.toml", "shop", "reader", "old")
        daemon.reload()
        yield daemon


CASES = {"none": "", "wrong": WRONG, "expired": OLD, "revoked": GONE, "valid": SHOP, "other scope": READER}
EXPECTED = {"none": 401, "wrong": 401, "expired": 401, "revoked": 401, "valid": 101, "other scope": 403}


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("form", ["header", "query"])
@pytest.mark.parametrize("case", CASES)
def test_who_comes_in_at_the_websocket(guarded: Daemon, case: str, form: str) -> None:
    ready, token = guarded.wait_ready(), CASES[case]
    url = ready.cdc if form == "header" or not token else f"{ready.cdc}?token={token}"
    wait_until(lambda: asyncio.run(handshake(ready.cdc, GONE)) == 401, "the reload to be everywhere")
    assert asyncio.run(handshake(url, token if form == "header" else "")) == EXPECTED[case]


@pytest.mark.acceptance("AT-98")
def test_who_comes_in_over_http(guarded: Daemon) -> None:
    http = guarded.wait_ready().http
    wait_until(lambda: status(f"{http}/metrics", GONE) == 401, "the reload to be everywhere")
    reading = {case: status(f"{http}/metrics", {"valid": READER, "other scope": SHOP}.get(case, token)) for case, token in CASES.items()}
    assert reading == {**EXPECTED, "valid": 200}
    body = json.dumps({"sourceDoId": "shop-http", "sequenceNumber": 1, "events": []}).encode()
    writing = {case: answer_of(f"{http}/cdc", token, data=body) for case, token in CASES.items()}
    assert {case: code for case, (code, _) in writing.items()} == {**EXPECTED, "valid": 200}
    assert json.loads(writing["valid"][1])["status"] == "ok"
    assert json.loads(writing["other scope"][1])["reason"] == "forbidden"
    for token in CASES.values():
        assert [status(http + path, token) for path in ("/health", "/ready", "/ready/writer")] == [200, 200, 200]


@pytest.mark.acceptance("AT-98")
def test_a_source_and_a_table_outside_the_scope_are_forbidden_and_leave_nothing(guarded: Daemon) -> None:
    async def scene() -> None:
        url = guarded.wait_ready().cdc
        async with conversation(url, SHOP) as talk:
            refused = await talk.ask(connect_message("payroll"))
            assert (refused["type"], refused["reason"], refused["shouldRetry"]) == ("nack", "forbidden", False)
            with pytest.raises(ConnectionClosed) as closed:
                await talk.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        async with conversation(url, SHOP) as talk:
            await talk.ask(connect_message("shop-a"))
            assert (await talk.ask(schema_message("shop-a", 1, "public.orders")))["status"] == "ok"
            for message in (schema_message("shop-a", 2, "secret.salaries"), batch("shop-a", 2, "secret.salaries")):
                refused = await talk.ask(message)
                assert (refused["reason"], refused["sequenceNumber"]) == ("forbidden", 2)
                assert "`public.*` only (got `secret.salaries`)" in refused["errorMessage"]
            assert (await talk.ask(batch("shop-a", 2)))["status"] == "ok"
            result = (await talk.ask({"type": "flush_request", "timestamp": 1, "sourceDoId": "shop-a", "reason": "manual"}))["result"]
            assert result["success"], result
        listed = json.loads(guarded.run("tables", "--json").stdout)
        assert "secret.salaries" not in json.dumps(listed)
        assert "public.orders" in json.dumps(listed)

    asyncio.run(scene())


@pytest.mark.acceptance("AT-98")
def test_what_a_command_that_sends_is_told(guarded: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "orders.ndjson"
    file.write_text('{"timestamp": 1, "operation": "INSERT", "table": "public.sent", "rowId": "1", "after": {"id": 1}}\n')
    ready = guarded.wait_ready()

    def send(token: str, *more: str, source: str = "shop-b") -> tuple[int, str]:
        command = [*dolake_command(), "send", str(file), "--source", source, "--to", ready.cdc, *more]
        environment = clean_environment({"DOLAKE_TOKEN": token} if token else {})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert not token or token not in done.stdout + done.stderr
        return done.returncode, done.stderr

    assert send(SHOP)[0] == 0
    assert send("", "--token", SHOP)[0] == 0
    for token, source, words in (
        ("", "shop-b", "a token is needed"),
        (WRONG, "shop-b", "not known here"),
        (OLD, "shop-b", "the token 'old' expired"),
        (READER, "shop-b", "may not send"),
        (SHOP, "payroll", "may send as `shop-*` only"),
    ):
        code, said = send(token, source=source)
        assert code == 5
        assert words in said


@pytest.mark.acceptance("AT-98")
def test_a_revoked_token_ends_its_connections_and_no_others_and_a_restarted_half_knows_it_too(tmp_path: Path) -> None:
    async def scene(daemon: Daemon) -> None:
        ready = daemon.wait_ready()
        async with conversation(ready.cdc, GONE) as revoked, conversation(ready.cdc, SHOP) as kept:
            await revoked.ask(connect_message("other"))
            await kept.ask(connect_message("shop-a"))
            assert [(await revoked.ask(batch("other", 1)))["status"], (await kept.ask(batch("shop-a", 1)))["status"]] == ["ok", "ok"]
            write_tokens(tmp_path / "tokens.toml", "shop", "reader")
            daemon.reload()
            wait_until(lambda: daemon.metrics(READER).get('dolake_auth_reloads_total{outcome="reloaded"}') == 1, "the reload")
            assert daemon.metrics(READER)["dolake_auth_tokens_count"] == 2
            refused = await revoked.ask(batch("other", 2))
            assert (refused["reason"], refused["sequenceNumber"]) == ("unauthorized", 2)
            with pytest.raises(ConnectionClosed) as closed:
                await revoked.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
            assert (await kept.ask(batch("shop-a", 2)))["status"] == "ok"
        # A file that is wrong now changes nothing, not even for a process that is started again, a spare or not.
        (tmp_path / "tokens.toml").write_text("[tokens.broken")
        daemon.reload()
        for _ in range(2):
            before = daemon.wait_ready()
            daemon.kill("ingest", "http")
            daemon.wait_replaced(before, "ingest", "http")
            assert [await handshake(ready.cdc, token) for token in (GONE, SHOP, READER)] == [401, 101, 403]
            assert [status(f"{ready.http}/metrics", token) for token in (GONE, SHOP, READER)] == [401, 403, 200]

    with daemon_with_tokens(tmp_path, "shop", "reader", "gone") as daemon:
        daemon.start()
        asyncio.run(scene(daemon))


@pytest.mark.acceptance("AT-98")
def test_a_reload_that_is_wrong_is_told_and_counted_and_changes_nothing(tmp_path: Path) -> None:
    with daemon_with_tokens(tmp_path, "shop", "reader") as daemon:
        daemon.start()
        ready = daemon.wait_ready()
        wrong = {
            "tokens.shop.hash": SECTIONS["shop"].replace("sha256:", "md5:"),
            "must not be empty after a reload|auth.tokens_file: must hold a token": "",
            "must be TOML": "[tokens",
        }
        for count, (words, text) in enumerate(wrong.items(), 1):
            (tmp_path / "tokens.toml").write_text(text)
            daemon.reload()
            refused = 'dolake_auth_reloads_total{outcome="refused"}'
            wait_until(lambda: daemon.metrics(READER).get(refused) == count, lambda: f"{count} refusals\n{daemon.tail()}")  # noqa: B023
            assert any(part in daemon.tail() for part in words.split("|"))
            assert asyncio.run(handshake(ready.cdc, SHOP)) == 101
        write_tokens(tmp_path / "tokens.toml", "reader")
        daemon.reload()
        wait_until(lambda: asyncio.run(handshake(ready.cdc, SHOP)) == 401, "the good reload")


@pytest.mark.acceptance("AT-98")
def test_tokens_stand_in_no_log_line_no_metric_and_no_file(tmp_path: Path) -> None:
    tokens = {"SHOP": SHOP, "READER": READER, "OLD": OLD, "GONE": GONE, "WRONG": WRONG}
    with daemon_with_tokens(tmp_path, "shop", "reader", "old", DOLAKE_LOG_LEVEL="debug") as daemon:
        daemon.start()
        ready = daemon.wait_ready()

        async def scene() -> None:
            for token in tokens.values():
                for url, header in ((ready.cdc, token), (f"{ready.cdc}?token={token}", ""), (f"{ready.cdc}/elsewhere?token={token}", "")):
                    await handshake(url, header)
            async with conversation(f"{ready.cdc}?token={SHOP}") as talk:
                await talk.ask(connect_message("shop-a"))
                await talk.ask(batch("shop-a", 1))
                await talk.ask(batch("shop-a", 2, "secret.salaries"))
                await talk.send({"type": "nonsense", "token": SHOP})
                await talk.receive()

        asyncio.run(scene())
        for token in tokens.values():
            for path in ("/metrics", "/ready", "/nothing", "/cdc"):
                answer_of(f"{ready.http}{path}?token={token}")
                answer_of(ready.http + path, token, data=b"{}")
        for address in (ready.cdc, ready.http):  # What is not even HTTP.
            host, port = address.split("/")[2].split(":")
            with socket.create_connection((host, int(port)), timeout=20) as link:
                link.sendall(f"GET /?token={SHOP} HTTP/9.9\r\nAuthorization: Bearer {SHOP}\r\nX\r\n\r\n".encode())
                link.recv(1000)
        write_tokens(tmp_path / "tokens.toml", "reader")
        daemon.reload()
        with open(tmp_path / "tokens.toml", "a") as file:
            file.write(f'[tokens.{SHOP}]\nhash = "{SHOP}"\n')
        daemon.reload()
        metrics = answer_of(f"{ready.http}/metrics", READER)[1]
        seen = {"metrics": metrics.encode(), "ready.json": (daemon.data / "ready.json").read_bytes()}
        daemon.kill("ingest")
        daemon.stop()
        seen["log lines"] = daemon.output.read_bytes()
        seen |= {str(path): path.read_bytes() for path in daemon.data.rglob("*") if path.is_file()}
    assert len(seen["log lines"]) > 1000
    assert [(name, place) for name, token in tokens.items() for place, content in seen.items() if token[4:].encode() in content] == []


def test_without_tokens_only_loopback_is_listened_on_and_the_log_says_so(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon:
        daemon.start()
        assert "no tokens are configured: listening on loopback only" in daemon.tail()
        assert status(daemon.wait_ready().http + "/metrics") == 200
    refused = Daemon(tmp_path / "other", {"DOLAKE_HOST": "0.0.0.0"}).run("serve")
    assert refused.returncode == 2
    assert "host: must be a loopback address" in refused.stderr


def test_tokens_let_any_host_be_listened_on_and_without_tls_the_log_warns(tmp_path: Path) -> None:
    with daemon_with_tokens(tmp_path, "shop", DOLAKE_HOST="0.0.0.0") as daemon:
        daemon.start(wait=False)
        wait_until(lambda: "tokens travel in the clear" in daemon.tail(), lambda: daemon.tail())
        assert wait_until(daemon.ready, lambda: daemon.tail()).cdc.startswith("ws://0.0.0.0:")


# -- TLS


def trust(authority: Authority, client: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


def tls_daemon(directory: Path, server: Pair, client_ca: Path | None = None, **settings: str) -> Daemon:
    files = {**UNPACED, "DOLAKE_TLS_CERTIFICATE": str(server.certificate), "DOLAKE_TLS_KEY": str(server.key)}
    return Daemon(directory / "data", {**files, **({"DOLAKE_TLS_CLIENT_CA": str(client_ca)} if client_ca else {}), **settings})


async def accepted(url: str, tls: ssl.SSLContext) -> bool:
    try:
        async with conversation(url, ssl=tls) as talk:
            return bool((await talk.ask(connect_message("shop-a")))["type"] == "status")
    except (OSError, InvalidHandshake, InvalidMessage, ConnectionClosed):
        return False


def tls_1_1(authority: Authority, client: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
    context.load_cert_chain(client.certificate, client.key)
    return context


def speaks_tls_1_1(client: ssl.SSLContext, server: Pair) -> bool:
    """That a client of this machine can do so at all, with a server that does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.load_cert_chain(server.certificate, server.key)
    with socket.create_server(("127.0.0.1", 0)) as listen:

        def serve_one() -> None:
            link, _ = listen.accept()
            with context.wrap_socket(link, server_side=True) as wrapped:
                wrapped.sendall(b"hello")

        thread = threading.Thread(target=serve_one)
        thread.start()
        with socket.create_connection(listen.getsockname()) as link, client.wrap_socket(link, server_hostname="localhost") as wrapped:
            greeting = wrapped.recv(5)
        thread.join()
    return greeting == b"hello"


@pytest.mark.acceptance("AT-97")
def test_one_way_in_and_five_that_are_refused_at_both_ports(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    client, good = authority.issue("client"), authority.issue("server")
    servers = {"good": good, "expired": authority.issue("expired", days=-1), "wrong host": authority.issue("wrong", hosts="DNS:elsewhere")}
    servers["self-signed"] = stranger.issue("unknown")
    old = tls_1_1(authority, client)
    assert speaks_tls_1_1(old, good)
    outcomes: dict[str, tuple[bool, int]] = {}
    served = Pair(tmp_path / "served.pem", tmp_path / "served.key")

    def put(pair: Pair) -> None:
        shutil.copy(pair.certificate, served.certificate)
        shutil.copy(pair.key, served.key)

    put(good)
    with tls_daemon(tmp_path, served, authority.certificate) as daemon:
        daemon.tls = trust(authority, client)
        daemon.start()
        ready = daemon.wait_ready()
        assert (ready.cdc[:6], ready.http[:8]) == ("wss://", "https://")
        contexts = {"TLS 1.1": old, "no client certificate": trust(authority)}
        for case in ("TLS 1.1", "no client certificate", *servers):
            context = contexts.get(case, daemon.tls)
            put(servers.get(case, good))
            daemon.reload()
            if case not in ("good", *contexts):
                wait_until(lambda: status(ready.http + "/health", tls=daemon.tls) == 0, "the reload")
            outcomes[case] = asyncio.run(accepted(ready.cdc, context)), status(ready.http + "/health", tls=context)
            put(good)
            daemon.reload()
            wait_until(lambda: status(ready.http + "/health", tls=daemon.tls) == 200, "the reload back")
            wait_until(lambda: asyncio.run(accepted(ready.cdc, daemon.tls)), "the reload back")  # type: ignore[arg-type]
    refused = (False, 0)
    assert outcomes == {
        "good": (True, 200),
        "expired": refused,
        "wrong host": refused,
        "self-signed": refused,
        "TLS 1.1": refused,
        "no client certificate": refused,
    }


@pytest.mark.acceptance("AT-97")
def test_reloads_under_load_drop_no_connection_and_hand_out_the_new_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    served = authority.issue("served")
    others = [authority.issue(f"server{number}") for number in range(2)]
    connection_count, reload_count = 20, 6

    def serial(address: str) -> bytes:
        """The certificate that a new connection is shown."""
        host, port = address.split("/")[2].split(":")
        with (
            socket.create_connection((host, int(port)), timeout=20) as link,
            trust(authority).wrap_socket(link, server_hostname="localhost") as wrapped,
        ):
            shown = wrapped.getpeercert(binary_form=True)
            assert shown is not None
            return shown

    async def scene(daemon: Daemon) -> None:
        ready, stopping = daemon.wait_ready(), asyncio.Event()

        async def stream(name: str) -> int:
            async with conversation(ready.cdc, ssl=daemon.tls) as talk:
                await talk.ask(connect_message(name))
                number = 0
                while not stopping.is_set():
                    number += 1
                    assert (await talk.ask(batch(name, number)))["status"] == "ok"
                return number

        streams = [asyncio.create_task(stream(f"shop-{index}")) for index in range(connection_count)]
        for number in range(reload_count):
            pair = others[number % 2]
            shutil.copy(pair.certificate, served.certificate)
            shutil.copy(pair.key, served.key)
            await asyncio.to_thread(daemon.reload)
            new = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
            for address in (ready.cdc, ready.http):
                await asyncio.to_thread(wait_until, lambda: serial(address) == new, "the new certificate")  # noqa: B023
            assert not any(task.done() for task in streams)
        stopping.set()
        counts = await asyncio.gather(*streams)
        assert min(counts) > 0
        samples = await asyncio.to_thread(daemon.metrics)
        assert samples["dolake_cdc_events_total"] == 3 * sum(counts)
        assert samples['dolake_auth_reloads_total{outcome="reloaded"}'] == reload_count

    with tls_daemon(tmp_path, served) as daemon:
        daemon.tls = trust(authority)
        daemon.start()
        asyncio.run(scene(daemon))


@pytest.mark.acceptance("AT-97")
def test_certificates_that_are_bad_now_stay_out_also_when_a_half_is_started_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    served = authority.issue("served")
    with tls_daemon(tmp_path, served) as daemon:
        daemon.tls = trust(authority)
        daemon.start()
        before = daemon.wait_ready()
        served.key.write_text("no key")
        daemon.reload()
        wait_until(lambda: daemon.metrics().get('dolake_auth_reloads_total{outcome="refused"}') == 1, lambda: daemon.tail())
        assert "tls.key: must be a private key in PEM" in daemon.tail()
        served.certificate.unlink()
        daemon.kill("ingest", "http")
        daemon.wait_replaced(before, "ingest", "http")
        assert asyncio.run(accepted(before.cdc, daemon.tls))


@pytest.mark.acceptance("AT-97", "AT-100")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"DOLAKE_TLS_CERTIFICATE": "{x}/none.pem", "DOLAKE_TLS_KEY": "{x}/served.key"},
            "tls.certificate: must be a file that can be read",
        ),
        ({"DOLAKE_TLS_CERTIFICATE": "{x}/served.pem", "DOLAKE_TLS_KEY": "{x}/served.pem"}, "tls.key: must be a private key in PEM"),
        ({"DOLAKE_TLS_CERTIFICATE": "{x}/served.pem"}, "tls.key: must be given together with tls.certificate"),
        ({"DOLAKE_TLS_CLIENT_CA": "{x}/served.pem"}, "tls.client_ca: must be given together with tls.certificate and tls.key"),
    ],
)
def test_a_daemon_with_bad_certificates_does_not_start(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    Authority(tmp_path).issue("served")
    done = Daemon(tmp_path / "data", {name: value.replace("{x}", str(tmp_path)) for name, value in settings.items()}).run("serve")
    assert done.returncode == 2
    assert words in done.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["dolake.toml"]


@pytest.mark.acceptance("AT-97")
def test_the_command_that_sends_trusts_what_it_is_told_to(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client")
    file = tmp_path / "orders.ndjson"
    file.write_text('{"timestamp": 1, "operation": "INSERT", "table": "orders", "rowId": "1", "after": {"id": 1}}\n')
    shown = ("--certificate", str(client.certificate), "--certificate-key", str(client.key))
    with tls_daemon(tmp_path, server, authority.certificate) as daemon:
        daemon.tls = trust(authority, client)
        daemon.start()
        send = ("send", str(file), "--source", "s", "--json", "--retry-s", "0")
        sent = daemon.run(*send, "--ca", str(authority.certificate), *shown)
        assert (sent.returncode, json.loads(sent.stdout)["events"]) == (0, 1)
        distrusted = daemon.run(*send, *shown)
        assert (distrusted.returncode, "--ca" in distrusted.stderr) == (3, True)
        bare = daemon.run(*send, "--ca", str(authority.certificate))
        assert (bare.returncode, "--certificate and --certificate-key" in bare.stderr) == (3, True)
        wrong = daemon.run(*send, "--ca", str(file))
        assert (wrong.returncode, "--ca: must be a file of CA certificates" in wrong.stderr) == (2, True)


def test_an_ingest_half_alone_reloads_too(tmp_path: Path) -> None:
    tokens, output = tmp_path / "tokens.toml", tmp_path / "output"
    write_tokens(tokens, "shop", "gone")
    command = [*dolake_command(), "ingest", "--data", str(tmp_path / "data"), "--port", "0"]
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command, env=clean_environment({**UNPACED, "DOLAKE_AUTH_TOKENS_FILE": str(tokens)}), stdout=file, stderr=file
        )
    try:

        def address() -> str:
            lines = [json.loads(line) for line in output.read_text().splitlines() if line.endswith("}")]
            return next((line["cdc"] for line in lines if line["event"] == "ready"), "")

        url = wait_until(address, lambda: output.read_text())
        assert asyncio.run(handshake(url, GONE)) == 101
        write_tokens(tokens, "shop")
        os.kill(process.pid, signal.SIGHUP)
        wait_until(lambda: asyncio.run(handshake(url, GONE)) == 401, "the reload")
        assert asyncio.run(handshake(url, SHOP)) == 101
    finally:
        process.terminate()
        assert process.wait(30) == 0
