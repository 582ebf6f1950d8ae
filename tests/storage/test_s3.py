"""What the S3 store makes of a server's answers. The store itself is held to a real server in the end-to-end tests."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c
import pytest

from dolake.clock import SystemClock
from dolake.errors import ObjectDamaged, ObjectMissing, StoreUnreachable
from dolake.storage import s3
from dolake.storage.s3 import S3Access, S3Store
from dolake.storage.warehouse import open_store


@contextmanager
def server_that_says(status: int, code: str, *, first: str = "") -> Iterator[str]:
    """An S3 server that answers every request of the method `first` (all, if empty) with one error, and others with nothing."""

    class Refusal(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            refused = not first or self.command == first
            body = f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode() if refused and self.command != "HEAD" else b""
            self.send_response(status if refused else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, format: str, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def store_at(endpoint: str) -> Iterator[S3Store]:
    store = S3Store("s3://lake/warehouse", S3Access(endpoint, "us-east-1", "AK", "a very secret key"))
    try:
        yield store
    finally:
        store.close()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "NoSuchBucket", "the bucket lake does not exist: create it, or set warehouse.uri"),
        (403, "InvalidAccessKeyId", "correct s3.access_key"),
        (403, "SignatureDoesNotMatch", "correct s3.secret_key"),
        (400, "ExpiredToken", "renew s3.access_key, s3.secret_key and s3.session_token"),
        (400, "InvalidToken", "correct s3.session_token"),
        (403, "AccessDenied", "may not put objects below s3://lake/warehouse: allow s3:PutObject"),
        (403, "RequestTimeTooSkewed", "clock is too far from the server's"),
        (400, "AuthorizationHeaderMalformed", "correct s3.region"),
        (418, "Teapot", "Teapot"),
    ],
)
def test_a_refusal_names_the_setting_at_fault_and_no_secret(status: int, code: str, said: str) -> None:
    with server_that_says(status, code) as endpoint, store_at(endpoint) as store:
        with pytest.raises(StoreUnreachable) as caught:
            store.probe("one")
        assert said in str(caught.value)
        assert endpoint in str(caught.value)
        assert "a very secret key" not in str(caught.value)


@pytest.mark.parametrize(("method", "action"), [("PUT", "s3:PutObject"), ("GET", "s3:GetObject"), ("DELETE", "s3:DeleteObject")])
def test_a_missing_permission_is_named(method: str, action: str) -> None:
    with server_that_says(403, "AccessDenied", first=method) as endpoint, store_at(endpoint) as store:
        calls = {"PUT": lambda: store.put("s3://lake/warehouse/a", b""), "GET": lambda: store.get("s3://lake/warehouse/a")}
        with pytest.raises(StoreUnreachable, match=action):
            calls.get(method, lambda: store.delete("s3://lake/warehouse/a"))()


def test_a_store_that_does_not_keep_what_it_accepts_is_found_out() -> None:
    said = pytest.raises(StoreUnreachable, match="came back with other bytes")
    with server_that_says(500, "", first="POST") as endpoint, store_at(endpoint) as store, said:
        store.probe("one")


def test_a_head_request_says_missing_and_forbidden_apart() -> None:
    with server_that_says(404, "") as endpoint, store_at(endpoint) as store, pytest.raises(ObjectMissing):
        store.size("s3://lake/warehouse/a")
    with server_that_says(403, "") as endpoint, store_at(endpoint) as store, pytest.raises(StoreUnreachable, match="s3:GetObject"):
        store.size("s3://lake/warehouse/a")


def test_a_server_where_nobody_answers_is_named() -> None:
    with server_that_says(200, "") as endpoint:
        pass
    with store_at(endpoint) as store, pytest.raises(StoreUnreachable, match=f"{endpoint} cannot be reached: correct s3.endpoint"):
        store.probe("one")


@pytest.mark.parametrize(
    "location", ["s3://lake/warehouse", "s3://lake/other/a", "s3://lake/warehouse/../a", "s3://other/warehouse/a", "file:///a"]
)
def test_nothing_outside_the_warehouse_is_touched(location: str) -> None:
    with store_at("http://127.0.0.1:1") as store:
        for call in (store.get, store.size, store.delete, lambda where: store.put(where, b""), lambda where: list(store.list(where))):
            with pytest.raises(ValueError, match="does not lie in the warehouse"):
                call(location)


@pytest.mark.parametrize("root", ["s3://", "s3:///a", "file:///a"])
def test_a_root_names_a_bucket(root: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        S3Store(root, S3Access())


def test_an_s3_uri_opens_an_s3_store() -> None:
    store = open_store("s3://lake/warehouse/", S3Access("http://127.0.0.1:1"))
    assert isinstance(store, S3Store)
    assert store.root == "s3://lake/warehouse"
    store.close()


def test_secrets_are_not_shown() -> None:
    assert "hush" not in repr(S3Access("http://x", "r", "AK", "hush", "hush"))


@contextmanager
def server_of(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[S3Store]:
    """A server that does what it is told with each request."""

    class Told(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def told(self) -> None:
            answer(self)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = told

        def log_message(self, format: str, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with store_at(f"http://127.0.0.1:{server.server_address[1]}") as store:
            yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def give(request: BaseHTTPRequestHandler, body: bytes, **headers: str) -> None:
    request.rfile.read(int(request.headers.get("Content-Length", 0)))
    request.send_response(200)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


LOCATION = "s3://lake/warehouse/a"
WHOLE = b"all of it"
DIGEST = {"x-amz-meta-dolake-crc32c": f"{google_crc32c.value(WHOLE):08x}"}


def test_each_object_carries_its_digest_and_is_held_against_it() -> None:
    kept: dict[str, str] = {}
    with server_of(lambda request: (kept.update(request.headers), give(request, b""))[1]) as store:
        store.put(LOCATION, WHOLE)
    assert kept["x-amz-meta-dolake-crc32c"] == DIGEST["x-amz-meta-dolake-crc32c"]
    assert kept["Content-MD5"] == base64.b64encode(hashlib.md5(WHOLE).digest()).decode()
    with server_of(lambda request: give(request, WHOLE, **DIGEST)) as store:
        assert store.get(LOCATION) == WHOLE
    with server_of(lambda request: give(request, b"somebody else's, without a digest")) as store:
        assert store.get(LOCATION) == b"somebody else's, without a digest"


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_an_answer_cut_short_in_good_form_is_damage_by_name(cut: int) -> None:
    with server_of(lambda request: give(request, WHOLE[:cut], **DIGEST)) as store, pytest.raises(ObjectDamaged, match=LOCATION):
        store.get(LOCATION)


def test_every_flipped_bit_is_damage_by_name() -> None:
    body = bytearray(WHOLE)
    with server_of(lambda request: give(request, bytes(body), **DIGEST)) as store:
        for bit in range(8 * len(WHOLE)):
            body[:] = WHOLE
            body[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ObjectDamaged, match=LOCATION):
                store.get(LOCATION)


def test_a_body_shorter_than_announced_is_no_object() -> None:
    def break_off(request: BaseHTTPRequestHandler) -> None:
        give(request, WHOLE, **{**DIGEST, "Content-Length": "100"})
        request.close_connection = True

    with server_of(break_off) as store, pytest.raises(StoreUnreachable) as caught:
        store.get(LOCATION)
    assert caught.value.code == "no_answer"


@pytest.mark.parametrize("verb", ["get", "put", "size", "list", "delete"])
def test_a_server_that_takes_a_request_and_never_answers_is_left(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(s3, "_SILENCE_S_MAX", 0.2)
    over, asked = threading.Event(), []
    calls: dict[str, Callable[[S3Store], object]] = {
        "get": lambda store: store.get(LOCATION),
        "put": lambda store: store.put(LOCATION, WHOLE),
        "size": lambda store: store.size(LOCATION),
        "list": lambda store: list(store.list(LOCATION)),
        "delete": lambda store: store.delete(LOCATION),
    }

    def hold(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.command)
        over.wait(30)
        request.close_connection = True

    with server_of(hold) as store:
        try:
            with pytest.raises(StoreUnreachable, match=r"was silent for 0\.2 s") as caught:
                calls[verb](store)
        finally:
            over.set()
        assert len(asked) == 1, "it was asked again out of sight"
    assert caught.value.code == "no_answer"


class RunningClock(SystemClock):
    """On which a minute passes between any two looks."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic_s(self) -> float:
        self.looks += 1
        return self.looks * 60.0


def test_what_takes_longer_than_the_slowest_link_of_any_use_is_given_up() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            give(request, WHOLE)

    with server_of(answer) as store:
        hasty = S3Store(store.root, S3Access(store._where(), "us-east-1", "AK", "secret"), clock=RunningClock())
        try:
            for call in (lambda: hasty.put(LOCATION, WHOLE), lambda: hasty.get(LOCATION)):
                with pytest.raises(StoreUnreachable, match="takes or gives less than 8 KiB/s"):
                    call()
        finally:
            hasty.close()


def test_a_part_that_nobody_answers_is_not_followed_by_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PUT_SIZE_BYTES_MAX", 4)
    asked = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.command)
        if request.command == "POST":
            give(request, b"<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>")
        else:
            request.close_connection = True

    with server_of(answer) as store, pytest.raises(StoreUnreachable, match="broke off"):
        store.put(LOCATION, WHOLE)
    assert asked == ["POST", "PUT"]


@pytest.mark.parametrize(("code", "status"), [("InternalError", 500), ("SlowDown", 503)])
def test_a_request_is_made_once_and_more_often_only_for_who_has_no_loop(code: str, status: int) -> None:
    for tries, expected in ((1, 1), (3, 3)):
        asked = []

        def refuse(request: BaseHTTPRequestHandler, asked: list[str] = asked) -> None:
            asked.append(request.command)
            request.send_response(status)
            body = f"<Error><Code>{code}</Code></Error>".encode()
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)

        with server_of(refuse) as store:
            asking = S3Store(store.root, S3Access(store._where(), "us-east-1", "AK", "secret"), tries=tries)
            with pytest.raises(StoreUnreachable) as caught:
                asking.get(LOCATION)
            asking.close()
        assert caught.value.code == code
        assert len(asked) == expected
