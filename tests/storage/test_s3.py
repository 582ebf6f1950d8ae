"""What the S3 store makes of a server's answers. The store itself is held to a real server in the end-to-end tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dolake.errors import ObjectMissing, StoreUnreachable
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
