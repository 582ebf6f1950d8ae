"""AT-116: each fault of the proxies, against a target that is known, changes an outcome and is counted; one that bites nothing fails."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.harness.fault_proxy import Network, TcpProxy
from tests.harness.faults import Fault, FaultNeverHit, Installed
from tests.harness.http_faults import HttpProxy, requests
from tests.harness.waiting import wait_until
from tests.harness.websocket_faults import WebsocketProxy, frames

pytestmark = pytest.mark.acceptance("AT-116")

SOON_S = 0.1  # How long nothing must be heard of what is held: held for longer, it would not be noticed less.


class Echo(socketserver.ThreadingTCPServer):
    """Sends back what comes, keeps it, and knows how each connection ended."""

    daemon_threads = True
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _EchoHandler)
        self.received: list[bytes] = []
        self.endings: list[str] = []

    @property
    def text(self) -> bytes:
        return b"".join(self.received)


class _EchoHandler(socketserver.BaseRequestHandler):
    server: Echo

    def handle(self) -> None:
        try:
            while data := self.request.recv(1 << 16):
                self.server.received.append(data)
                self.request.sendall(data)
            self.server.endings.append("end")
        except OSError:
            self.server.endings.append("reset")


@contextlib.contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    with running(server):
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    with TcpProxy(echo.server_address[1]) as proxy:
        yield proxy


def dialled(proxy: TcpProxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def asked(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return heard(client, len(text))


def heard(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := client.recv(size - len(found))):
        found += data
    return found


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SOON_S)
    try:
        client.recv(1)
        return False  # An end is no silence either.
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)


# -- TCP


def test_without_faults_bytes_and_ends_pass_in_both_directions(proxy: TcpProxy, echo: Echo) -> None:
    text = bytes(range(256)) * 20_000  # 5 MB: more than the proxy holds on its way
    with dialled(proxy) as client:
        sending = threading.Thread(target=lambda: (client.sendall(text), client.shutdown(socket.SHUT_WR)))
        sending.start()
        assert heard(client, len(text) + 1) == text
        sending.join()
    assert echo.text == text
    wait_until(lambda: echo.endings == ["end"], "the target to hear the end")
    assert proxy.connection_count == 1
    wait_until(lambda: not proxy.links, "the link to be over")


def test_a_client_that_resets_is_heard_as_a_reset(proxy: TcpProxy, echo: Echo) -> None:
    client = dialled(proxy)
    assert asked(client, b"hello") == b"hello"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()
    wait_until(lambda: echo.endings == ["reset"], "the target to hear the reset")


def test_refuse_resets_what_is_open_and_what_comes(proxy: TcpProxy) -> None:
    with dialled(proxy) as client:
        assert asked(client, b"a") == b"a"
        fault = proxy.refuse()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionResetError), dialled(proxy) as client:
        client.recv(1)
    assert fault.hit_count == 2
    proxy.heal()
    with dialled(proxy) as client:
        assert asked(client, b"b") == b"b"


def test_a_target_that_is_not_there_is_a_reset() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # It holds the port and does not listen.
        with TcpProxy(bound.getsockname()[1]) as proxy, pytest.raises(ConnectionResetError), dialled(proxy) as client:
            client.recv(1)


def test_reset_hits_at_the_byte_that_was_named(proxy: TcpProxy, echo: Echo) -> None:
    fault = proxy.install(Fault("reset", when=lambda chunk: chunk.direction == "up" and chunk.position >= 3, times=1))
    with dialled(proxy) as client:
        assert asked(client, b"abc") == b"abc"
        with pytest.raises(ConnectionResetError):
            asked(client, b"d")
    assert (fault.hit_count, echo.text) == (1, b"abc")
    with dialled(proxy) as client:
        assert asked(client, b"abcdef") == b"abcdef"


def test_cut_resets_what_is_open_and_nothing_else(proxy: TcpProxy) -> None:
    with dialled(proxy) as client:
        assert asked(client, b"a") == b"a"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with dialled(proxy) as client:
        assert asked(client, b"b") == b"b"


def test_a_black_hole_holds_everything_until_it_is_healed(proxy: TcpProxy, echo: Echo) -> None:
    with dialled(proxy) as client:
        assert asked(client, b"a") == b"a"
        fault = proxy.block()
        client.sendall(b"b")
        with dialled(proxy) as another:
            another.sendall(b"x")
            assert is_silent(client)
            assert is_silent(another)
            assert echo.text == b"a"
            wait_until(lambda: fault.hit_count == 2, "both to be held")
            proxy.heal()
            assert heard(another, 1) == b"x"
        assert heard(client, 1) == b"b"


def test_a_black_hole_in_one_direction_loses_only_the_answers(proxy: TcpProxy, echo: Echo) -> None:
    proxy.install(Fault("black_hole", when=lambda chunk: chunk.direction == "down"))
    with dialled(proxy) as client:
        client.sendall(b"a")
        wait_until(lambda: echo.text == b"a", "the target to be asked")
        assert is_silent(client)
        proxy.heal()
        assert heard(client, 1) == b"a"


def test_a_half_open_connection_swallows_and_is_reset_when_it_heals(proxy: TcpProxy, echo: Echo) -> None:
    with dialled(proxy) as client:
        assert asked(client, b"a") == b"a"
        fault = proxy.install(Fault("half_open", times=1))
        wait_until(lambda: echo.endings == ["reset"], "the target to be told")
        client.sendall(b"b")
        assert is_silent(client)
        with dialled(proxy) as another:  # Once was asked for: the next connection is whole.
            assert asked(another, b"c") == b"c"
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert (fault.hit_count, echo.text) == (1, b"ac")


def test_latency_lets_another_way_be_faster_and_keeps_the_order(echo: Echo) -> None:
    port = echo.server_address[1]
    with TcpProxy(port) as slow, TcpProxy(port) as quick, dialled(slow) as late, dialled(quick) as early:
        fault = slow.install(Fault("latency", seconds=60, when=lambda chunk: chunk.direction == "up", times=2))
        late.sendall(b"1")
        wait_until(lambda: fault.hit_count == 1, "the first chunk to be delayed")
        late.sendall(b"2")
        wait_until(lambda: fault.hit_count == 2, "the second")
        late.sendall(b"3")  # It is not delayed itself, and does not overtake.
        assert asked(early, b"quick") == b"quick"
        assert is_silent(late)
        slow.heal()
        assert heard(late, 3) == b"123"
        assert echo.text == b"quick123"


def test_latency_passes_by_itself(proxy: TcpProxy) -> None:
    fault = proxy.install(Fault("latency", seconds=0.02))
    with dialled(proxy) as client:
        assert asked(client, b"a") == b"a"
    assert fault.hit_count >= 2  # once in each direction


def test_bandwidth_lets_through_a_part(echo: Echo) -> None:
    port = echo.server_address[1]
    with TcpProxy(port) as slow, dialled(slow) as client:
        fault = slow.install(Fault("bandwidth", size_bytes=100, when=lambda chunk: chunk.direction == "down"))
        client.sendall(b"x" * 50_000)
        assert heard(client, 5) == b"xxxxx"
        wait_until(lambda: len(echo.text) == 50_000, "the target to have it all")
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            assert len(client.recv(1 << 16)) < 40_000  # It would be 400 s by now.
        client.settimeout(10)
        slow.heal()
        assert fault.hit_count >= 1
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass


def test_fragments_arrive_one_by_one(proxy: TcpProxy, echo: Echo) -> None:
    fault = proxy.install(Fault("fragment", size_bytes=7, seconds=0.002, when=lambda chunk: chunk.direction == "up"))
    with dialled(proxy) as client:
        assert asked(client, b"0123456789" * 20) == b"0123456789" * 20
    assert fault.hit_count >= 1
    assert len(echo.received) > 5  # 29, unless the target is slow to look


def test_a_fault_can_pass_some_hit_some_and_be_left_to_chance(proxy: TcpProxy) -> None:
    fault = proxy.install(Fault("refuse", when=lambda number: isinstance(number, int), skip=1, times=2))
    outcomes = [outcome_of(proxy) for _ in range(5)]
    assert outcomes == ["echo", "reset", "reset", "echo", "echo"]
    assert (fault.seen_count, fault.hit_count) == (3, 2)
    chance = proxy.install(Fault("refuse", when=lambda number: isinstance(number, int), chance=0.5))
    outcomes = [outcome_of(proxy) for _ in range(40)]
    assert outcomes.count("reset") == chance.hit_count
    assert 5 < chance.hit_count < 35


def outcome_of(proxy: TcpProxy) -> str:
    try:
        with dialled(proxy) as client:
            return "echo" if asked(client, b"x") == b"x" else "end"
    except ConnectionResetError:
        return "reset"


def test_a_fault_that_never_hit_fails_the_test_that_used_it(echo: Echo) -> None:
    def run(*, error: Exception | None) -> None:
        with TcpProxy(echo.server_address[1]) as proxy, dialled(proxy) as client:
            proxy.install(Fault("reset", when=lambda chunk: chunk.position > 1_000))
            assert asked(client, b"a") == b"a"
            proxy.heal()  # Removing it does not excuse it.
            if error is not None:
                raise error

    with pytest.raises(FaultNeverHit, match="reset"):
        run(error=None)
    with pytest.raises(LookupError):  # What went wrong before is told, not this.
        run(error=LookupError())


def test_a_proxy_refuses_faults_it_does_not_know(proxy: TcpProxy) -> None:
    with pytest.raises(AssertionError, match="lose_answer"):
        proxy.install(Fault("lose_answer"))


def test_partition_and_isolate_block_the_links_between_and_no_others(echo: Echo) -> None:
    port = echo.server_address[1]
    names = [("a", "daemon"), ("b", "daemon"), ("daemon", "store")]
    with contextlib.ExitStack() as stack:
        proxies = {ends: stack.enter_context(TcpProxy(port)) for ends in names}
        clients = {ends: stack.enter_context(dialled(proxy)) for ends, proxy in proxies.items()}
        network = Network(proxies)

        def send(sent: bytes, *silent: tuple[str, str]) -> None:
            """Only these links let nothing through."""
            for client in clients.values():
                client.sendall(sent)
            assert [heard(clients[ends], 1) for ends in names if ends not in silent] == [sent] * (len(names) - len(silent))
            assert all(is_silent(clients[ends]) for ends in silent)
            wait_until(lambda: all(fault.hit_count for fault in faults), "every block to hold something")

        faults: list[Installed] = []
        send(b"a")
        faults += network.partition({"a"}, {"daemon", "b"})
        send(b"b", names[0])
        network.heal()
        assert heard(clients[names[0]], 1) == b"b"
        faults += network.isolate("daemon")
        send(b"c", *names)
        network.heal()
        assert [heard(client, 1) for client in clients.values()] == [b"c"] * 3
        faults += network.isolate("store")
        send(b"d", names[2])
        network.heal()
        assert heard(clients[names[2]], 1) == b"d"
        assert [fault.hit_count for fault in faults] == [1] * 5
        with pytest.raises(AssertionError, match="nobody"):
            network.isolate("nobody")


# -- HTTP


class Things(http.server.ThreadingHTTPServer):
    """PUT keeps a body, GET gives it back, with its length or, under /chunked, in chunks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ThingsHandler)
        self.things: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reset is what a test asked for."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _ThingsHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Things

    def do_PUT(self) -> None:
        self.server.asked.append(("PUT", self.path))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline() != b"\r\n":
                pass
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        exists = self.path in self.server.things
        self.server.things.setdefault(self.path, body)
        self.send_response(412 if exists else 200)
        self.send_header("ETag", '"abc"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))
        body = self.server.things.get(self.path, b"0123456789")
        self.send_response(200)
        self.send_header("ETag", '"abc"')
        if self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 4):
                piece = body[start : start + 4]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\nX-Trailer: yes\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def things() -> Iterator[Things]:
    server = Things()
    with running(server):
        yield server


@pytest.fixture
def store(things: Things) -> Iterator[HttpProxy]:
    with HttpProxy(things.server_address[1]) as proxy:
        yield proxy


class Client(http.client.HTTPConnection):
    """One connection, kept."""

    def __init__(self, proxy: HttpProxy, timeout_s: float = 10) -> None:
        super().__init__("127.0.0.1", proxy.port, timeout=timeout_s)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        self.request(method, path, body, headers, encode_chunked="Transfer-Encoding" in headers)  # type: ignore[arg-type]
        answer = self.getresponse()
        self.etag = answer.headers["ETag"]
        return answer.status, answer.read()


@pytest.fixture
def client(store: HttpProxy) -> Iterator[Client]:
    with contextlib.closing(Client(store)) as client:
        yield client


LOST = (ConnectionResetError, http.client.RemoteDisconnected, http.client.IncompleteRead, BrokenPipeError)


def test_requests_pass_on_one_connection_whatever_their_framing(client: Client, store: HttpProxy, things: Things) -> None:
    large = bytes(range(256)) * 10_000
    assert client.ask("PUT", "/a", large) == (200, b"")
    assert client.ask("GET", "/a") == (200, large)
    assert client.ask("HEAD", "/a") == (200, b"")
    assert client.ask("PUT", "/chunked/b", iter([b"one", b"two"]), **{"Transfer-Encoding": "chunked"}) == (200, b"")
    assert client.ask("GET", "/chunked/b") == (200, b"onetwo")
    assert client.ask("PUT", "/c", b"later", Expect="100-continue") == (200, b"")
    assert things.things == {"/a": large, "/chunked/b": b"onetwo", "/c": b"later"}
    assert (store.connection_count, store.request_count) == (1, 6)
    assert store.requests == things.asked


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
def test_status_answers_in_the_place_of_the_target(client: Client, store: HttpProxy, things: Things, status: int) -> None:
    fault = store.install(Fault("status", when=requests("PUT", "^/data/"), status=status, code="SlowDown", times=1))
    assert client.ask("PUT", "/meta/x", b"1")[0] == 200
    answer = client.ask("PUT", "/data/x", b"1")
    assert answer[0] == status
    assert b"<Code>SlowDown</Code>" in answer[1]
    assert client.ask("GET", "/data/x") == (200, b"0123456789")  # It never came.
    assert client.ask("PUT", "/data/x", b"1")[0] == 200
    assert (fault.hit_count, store.connection_count) == (1, 1)
    assert ("PUT", "/meta/x") in things.asked


def test_a_status_to_head_has_no_body(client: Client, store: HttpProxy) -> None:
    store.install(Fault("status", when=requests("HEAD"), status=503, code="SlowDown"))
    assert client.ask("HEAD", "/x") == (503, b"")
    assert client.ask("GET", "/x")[0] == 200


@pytest.mark.parametrize(("kind", "arrives"), [("reset_before", False), ("lose_answer", True)])
def test_a_reset_comes_before_the_request_or_after_it(client: Client, store: HttpProxy, things: Things, kind: str, arrives: bool) -> None:
    fault = store.install(Fault(kind, when=requests("PUT"), times=1))
    with pytest.raises(LOST):
        client.ask("PUT", "/x", b"1")
    client.close()
    assert (("/x" in things.things), fault.hit_count) == (arrives, 1)
    assert client.ask("PUT", "/x", b"1")[0] == (412 if arrives else 200)


@pytest.mark.parametrize(("kind", "arrives"), [("hold_request", False), ("hold_answer", True)])
def test_what_is_held_goes_on_when_it_is_let_go(store: HttpProxy, things: Things, kind: str, arrives: bool) -> None:
    fault = store.install(Fault(kind, when=requests("PUT")))
    impatient = Client(store, SOON_S)
    with pytest.raises(TimeoutError):
        impatient.ask("PUT", "/x", b"1")
    wait_until(lambda: fault.hit_count == 1, "it to be held")
    assert ("/x" in things.things) is arrives
    impatient.close()
    store.heal()
    wait_until(lambda: "/x" in things.things, "the request to arrive, though nobody waits for it")


def test_late_answers_504_now_and_applies_it_afterwards(client: Client, store: HttpProxy, things: Things) -> None:
    fault = store.install(Fault("late", when=requests("PUT"), times=1))
    assert client.ask("PUT", "/x", b"1")[0] == 504
    assert client.ask("GET", "/x") == (200, b"0123456789")
    assert client.ask("PUT", "/x", b"2")[0] == 200  # The retry lands first.
    store.remove(fault)
    wait_until(lambda: store.late_statuses == [412], "the first to land, and to be refused")
    assert (things.things["/x"], fault.hit_count) == (b"2", 1)
    store.install(Fault("late", when=requests("PUT", "/y"), times=1, seconds=0.01))
    assert client.ask("PUT", "/y", b"1")[0] == 504
    wait_until(lambda: things.things.get("/y") == b"1", "it to land by itself")


def test_twice_answers_with_what_the_repeat_was_told(client: Client, store: HttpProxy, things: Things) -> None:
    fault = store.install(Fault("twice", when=requests("PUT"), times=1))
    assert client.ask("PUT", "/x", b"1")[0] == 412
    assert (things.asked, fault.hit_count) == ([("PUT", "/x")] * 2, 1)


@pytest.mark.parametrize("path", ["/x", "/chunked/x"])
def test_an_answer_is_cut_short(client: Client, store: HttpProxy, path: str) -> None:
    fault = store.install(Fault("truncate", when=requests("GET"), times=1))
    with pytest.raises(LOST):
        client.ask("GET", path)
    client.close()
    assert client.ask("GET", path) == (200, b"0123456789")
    clean = store.install(Fault("truncate_clean", when=requests("GET"), times=1, size_bytes=3))
    assert client.ask("GET", path) == (200, b"012")
    assert client.ask("GET", path) == (200, b"0123456789")
    assert (fault.hit_count, clean.hit_count) == (1, 1)


@pytest.mark.parametrize("path", ["/x", "/chunked/x"])
def test_a_bit_is_flipped_on_the_way(client: Client, store: HttpProxy, things: Things, path: str) -> None:
    up = store.install(Fault("flip_request", when=requests("PUT"), times=1))
    assert client.ask("PUT", path, b"0123456789")[0] == 200
    assert things.things[path] == b"0123446789"
    down = store.install(Fault("flip_answer", when=requests("GET"), times=1))
    assert client.ask("GET", path) == (200, b"0123456789")
    assert client.ask("GET", path) == (200, b"0123446789")
    assert (up.hit_count, down.hit_count) == (1, 1)


def test_a_checksum_is_another_than_the_body_has(client: Client, store: HttpProxy) -> None:
    fault = store.install(Fault("wrong_checksum", when=requests("GET"), times=1))
    assert client.ask("GET", "/x") == (200, b"0123456789")
    assert client.etag == '"1bc"'
    client.ask("GET", "/x")
    assert (client.etag, fault.hit_count) == ('"abc"', 1)


def test_faults_of_bytes_hold_for_requests_too(client: Client, store: HttpProxy, things: Things) -> None:
    fragments = store.install(Fault("fragment", size_bytes=3, when=lambda chunk: chunk.direction == "up"))
    assert client.ask("PUT", "/x", b"0123456789" * 10)[0] == 200
    assert things.things["/x"] == b"0123456789" * 10
    hole = store.block()
    impatient = Client(store, SOON_S)
    with pytest.raises(TimeoutError):
        impatient.ask("GET", "/x")
    wait_until(lambda: hole.hit_count, "it to be held")
    store.heal()
    impatient.close()
    assert client.ask("GET", "/x")[1] == b"0123456789" * 10
    assert fragments.hit_count
    assert hole.hit_count


# -- websockets


@pytest.fixture
def words() -> Iterator[WebsocketProxy]:
    """A proxy before a server that answers each message with an `ack` of its number, whatever its size."""

    def answer(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                number = message.split(b"|" if isinstance(message, bytes) else "|")[0]
                connection.send(f'{{"type": "ack", "number": {number if isinstance(number, str) else number.decode()}}}')

    with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with WebsocketProxy(server.socket.getsockname()[1]) as proxy:
                yield proxy
        finally:
            server.shutdown()
            thread.join()


def spoken(proxy: WebsocketProxy) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{proxy.port}/", compression=None, max_size=None, proxy=None, close_timeout=1)


def heard_numbers(client: ClientConnection, count: int) -> list[int]:
    """The numbers of the next acks; fewer if the connection is over."""
    numbers = []
    with contextlib.suppress(ConnectionClosed):
        for _ in range(count):
            numbers.append(json.loads(client.recv(10))["number"])
    return numbers


@pytest.mark.parametrize("size", [0, 100, 1_000, 70_000, 300_000])
def test_frames_of_every_length_pass_as_text_and_as_bytes(words: WebsocketProxy, size: int) -> None:
    with spoken(words) as client:
        client.send("1|" + "x" * size)
        client.send(b"2|" + b"x" * size)
        client.send(["3|", "x" * size])  # one message in two frames
        assert heard_numbers(client, 3) == [1, 2, 3]
        assert client.ping().wait(10)
    assert words.seen["ack"] == 3
    assert words.seen["ping"] == words.seen["pong"] == 1


@pytest.mark.parametrize(("kind", "numbers"), [("cut", [1, 2]), ("cut_before", [1])])
def test_the_connection_is_cut_at_an_ack(words: WebsocketProxy, kind: str, numbers: list[int]) -> None:
    fault = words.install(Fault(kind, when=frames("down", "ack"), skip=1, times=1))
    with spoken(words) as client:
        heard = []
        for number in (1, 2):  # One after the other: what is sent into a closed connection resets it, and what was not yet read is gone.
            client.send(f"{number}|")
            heard += heard_numbers(client, 1)
        assert heard == numbers
        with pytest.raises(ConnectionClosed):
            client.recv(10)
    assert fault.hit_count == 1
    with spoken(words) as client:
        client.send("4|")
        assert heard_numbers(client, 1) == [4]


@pytest.mark.parametrize(
    ("fault", "numbers"),
    [
        (Fault("lose", when=frames("down", "ack", number=2)), [1, 3]),
        (Fault("lose", when=lambda frame: frame.direction == "up" and frame.payload == b"2|"), [1, 3]),
        (Fault("duplicate", when=frames("down", "ack", number=2)), [1, 2, 2, 3]),
        (Fault("duplicate", when=lambda frame: frame.direction == "up" and frame.number == 2), [1, 2, 2, 3]),
        (Fault("reorder", when=frames("down", "ack", number=2)), [1, 3, 2]),
        (Fault("reorder", when=lambda frame: frame.direction == "up" and frame.number == 1), [2, 1, 3]),
    ],
)
def test_frames_are_lost_doubled_and_overtaken(words: WebsocketProxy, fault: Fault, numbers: list[int]) -> None:
    installed = words.install(fault)
    with spoken(words) as client:
        for number in (1, 2, 3):
            client.send(f"{number}|")
        assert heard_numbers(client, len(numbers)) == numbers
        with pytest.raises(TimeoutError):
            client.recv(SOON_S)
    assert installed.hit_count == 1


def test_a_stall_holds_a_frame_and_all_behind_it(words: WebsocketProxy) -> None:
    fault = words.install(Fault("stall", when=frames("down", "ack", number=2)))
    with spoken(words) as client:
        for number in (1, 2, 3):
            client.send(f"{number}|")
        assert heard_numbers(client, 1) == [1]
        with pytest.raises(TimeoutError):
            client.recv(SOON_S)
        words.heal()
        assert heard_numbers(client, 2) == [2, 3]
    assert fault.hit_count == 1


def test_a_handshake_that_is_refused_passes_as_it_is(things: Things) -> None:
    with WebsocketProxy(things.server_address[1]) as proxy, contextlib.closing(Client(proxy)) as client:  # type: ignore[arg-type]
        assert client.ask("GET", "/x") == (200, b"0123456789")


def test_a_proxy_serves_the_loop_of_an_async_test(proxy: TcpProxy) -> None:
    async def scenario() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        fault = proxy.install(Fault("latency", seconds=0.01, times=1))
        try:
            return await reader.readexactly(5)
        finally:
            writer.close()
            assert fault.hit_count == 1

    assert asyncio.run(scenario()) == b"hello"
