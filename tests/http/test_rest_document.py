"""The REST catalog against its specification: every operation that is served, every status that it may answer with.

`CASES` gives for each (operation, status) a request that leads there; a test walks the document and finds what has none.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from dolake.http.catalog_routes import ENDPOINTS
from dolake.iceberg.rest_requests import REQUIREMENTS, UPDATES
from tests.harness.access import grant, new_token
from tests.http.rest import SCHEMA, Rest, refusal, serving, snapshot
from tests.http.rest_document import Operation, body_schema, breaches, operations, schema

NAMESPACES, NAMESPACE = "/v1/{prefix}/namespaces", "/v1/{prefix}/namespaces/{namespace}"
TABLES, TABLE = f"{NAMESPACE}/tables", f"{NAMESPACE}/tables/{{table}}"
PROPERTIES, REGISTER, RENAME, TRANSACTION = (
    *(f"{NAMESPACE}/properties", f"{NAMESPACE}/register"),
    *("/v1/{prefix}/tables/rename", "/v1/{prefix}/transactions/commit"),
)
METRICS, CREDENTIALS = f"{TABLE}/metrics", f"{TABLE}/credentials"
# Statuses that no request brings about: an expired token is a 401 here (the specification prefers it); 503 and 5XX have tests of
# their own below; of gateways there are none.
ELSEWHERE = {"419", "503", "5XX", "500", "502", "504"}
# Answers that the specification allows and dolake has no reason to give: properties and renames are served.
NEVER = {(f"POST {NAMESPACES}", "406"), (f"POST {PROPERTIES}", "406"), (f"POST {RENAME}", "406")}

READER, CHANGER, SENDER = (new_token() for _ in range(3))
TOKENS = {
    "reader": grant(READER, read=True),
    "changer": grant(CHANGER, read=True, catalog=True),
    "sender": grant(SENDER, sources=["*"], tables=["*"]),
}

ROWS = ("iceberg_tables", "iceberg_namespace_properties")
Send = Callable[[Rest], httpx.Response]


def of(method: str, path: str, body: Any = None, **more: Any) -> Send:
    return lambda rest: rest.ask(method, path, body, **more)


def table_of(rest: Rest) -> dict[str, Any]:
    return rest.get("namespaces/shop/tables/orders")


def commit_of(rest: Rest) -> dict[str, Any]:
    uuid = rest.metadata()["table-uuid"]
    return {"requirements": [{"type": "assert-table-uuid", "uuid": uuid}], "updates": [{"action": "set-properties", "updates": {"a": "b"}}]}


def changes_of(rest: Rest, name: str = "orders") -> dict[str, Any]:
    return {"table-changes": [{**commit_of(rest), "identifier": {"namespace": ["shop"], "name": name}}]}


def registered(rest: Rest, namespace: str = "shop", name: str = "again", path: str = "shop") -> httpx.Response:
    location = table_of(rest)["metadata-location"]
    assert rest.ask("DELETE", "namespaces/shop/tables/orders").status_code == 204
    return rest.ask("POST", f"namespaces/{path}/register", {"name": name, "metadata-location": location})


def unchanged(rest: Rest) -> httpx.Response:
    tag = rest.ask("GET", "namespaces/shop/tables/orders").headers["ETag"]
    return rest.ask("GET", "namespaces/shop/tables/orders", headers={"If-None-Match": tag})


def renamed(source: str, namespace: str, name: str) -> dict[str, Any]:
    return {"source": {"namespace": ["shop"], "name": source}, "destination": {"namespace": [namespace], "name": name}}


NEW = {"name": "new", "schema": SCHEMA}
UNKNOWN = {"requirements": [], "updates": [{"action": "invent"}]}
STALE = {"requirements": [{"type": "assert-table-uuid", "uuid": "00000000-0000-0000-0000-000000000000"}], "updates": []}
REPORT = {
    "report-type": "scan-report",
    "table-name": "orders",
    "snapshot-id": 2**62 + 1,
    "filter": True,
    "schema-id": 0,
    "projected-field-ids": [1],
    "projected-field-names": ["id"],
    "metrics": {},
}
BAD = "namespaces/sh%00op"

CASES: dict[tuple[str, str], Send] = {
    ("GET /v1/config", "200"): of("GET", "config"),
    ("GET /v1/config", "400"): of("GET", "config", headers={"Content-Encoding": "gzip"}),
    ("GET /v1/config", "404"): of("GET", "config?warehouse=s3://elsewhere"),
    (f"GET {NAMESPACES}", "200"): of("GET", "namespaces?pageToken=&pageSize=1"),
    (f"GET {NAMESPACES}", "400"): of("GET", "namespaces?pageToken=made-up"),
    (f"GET {NAMESPACES}", "404"): of("GET", "namespaces?parent=nowhere"),
    (f"POST {NAMESPACES}", "200"): of("POST", "namespaces", {"namespace": ["a", "b"], "properties": {"owner": "me"}}),
    (f"POST {NAMESPACES}", "400"): of("POST", "namespaces", {"namespace": []}),
    (f"POST {NAMESPACES}", "409"): of("POST", "namespaces", {"namespace": ["shop"]}),
    (f"GET {NAMESPACE}", "200"): of("GET", "namespaces/shop"),
    (f"GET {NAMESPACE}", "400"): of("GET", BAD),
    (f"GET {NAMESPACE}", "404"): of("GET", "namespaces/nowhere"),
    (f"HEAD {NAMESPACE}", "204"): of("HEAD", "namespaces/shop"),
    (f"HEAD {NAMESPACE}", "400"): of("HEAD", BAD),
    (f"HEAD {NAMESPACE}", "404"): of("HEAD", "namespaces/nowhere"),
    (f"DELETE {NAMESPACE}", "204"): of("DELETE", "namespaces/empty"),
    (f"DELETE {NAMESPACE}", "400"): of("DELETE", BAD),
    (f"DELETE {NAMESPACE}", "404"): of("DELETE", "namespaces/nowhere"),
    (f"DELETE {NAMESPACE}", "409"): of("DELETE", "namespaces/shop"),
    (f"POST {PROPERTIES}", "200"): of("POST", "namespaces/shop/properties", {"removals": ["gone"], "updates": {"owner": "you"}}),
    (f"POST {PROPERTIES}", "400"): of("POST", "namespaces/shop/properties", {"updates": {"owner": 7}}),
    (f"POST {PROPERTIES}", "404"): of("POST", "namespaces/nowhere/properties", {"updates": {}}),
    (f"POST {PROPERTIES}", "422"): of("POST", "namespaces/shop/properties", {"removals": ["a"], "updates": {"a": "b"}}),
    (f"GET {TABLES}", "200"): of("GET", "namespaces/shop/tables"),
    (f"GET {TABLES}", "400"): of("GET", "namespaces/shop/tables?pageSize=0"),
    (f"GET {TABLES}", "404"): of("GET", "namespaces/nowhere/tables"),
    (f"POST {TABLES}", "200"): of("POST", "namespaces/shop/tables", NEW),
    (f"POST {TABLES}", "400"): of("POST", "namespaces/shop/tables", {"name": "new"}),
    (f"POST {TABLES}", "404"): of("POST", "namespaces/nowhere/tables", NEW),
    (f"POST {TABLES}", "409"): of("POST", "namespaces/shop/tables", {**NEW, "name": "orders"}),
    (f"POST {REGISTER}", "200"): registered,
    (f"POST {REGISTER}", "400"): of("POST", "namespaces/shop/register", {"name": "again", "metadata-location": "file:///etc/passwd"}),
    (f"POST {REGISTER}", "404"): lambda rest: registered(rest, path="nowhere"),
    (f"POST {REGISTER}", "409"): lambda rest: registered(rest, name="lines"),
    (f"GET {TABLE}", "200"): of("GET", "namespaces/shop/tables/orders?snapshots=refs"),
    (f"GET {TABLE}", "304"): unchanged,
    (f"GET {TABLE}", "400"): of("GET", "namespaces/shop/tables/orders?snapshots=some"),
    (f"GET {TABLE}", "404"): of("GET", "namespaces/shop/tables/none"),
    (f"POST {TABLE}", "200"): lambda rest: rest.ask("POST", "namespaces/shop/tables/orders", commit_of(rest)),
    (f"POST {TABLE}", "400"): of("POST", "namespaces/shop/tables/orders", UNKNOWN),
    (f"POST {TABLE}", "404"): of("POST", "namespaces/shop/tables/none", STALE),
    (f"POST {TABLE}", "409"): of("POST", "namespaces/shop/tables/orders", STALE),
    (f"DELETE {TABLE}", "204"): of("DELETE", "namespaces/shop/tables/orders?purgeRequested=true"),
    (f"DELETE {TABLE}", "400"): of("DELETE", "namespaces/shop/tables/orders?purgeRequested=perhaps"),
    (f"DELETE {TABLE}", "404"): of("DELETE", "namespaces/shop/tables/none"),
    (f"HEAD {TABLE}", "204"): of("HEAD", "namespaces/shop/tables/orders"),
    (f"HEAD {TABLE}", "400"): of("HEAD", "namespaces/shop/tables/a.b"),
    (f"HEAD {TABLE}", "404"): of("HEAD", "namespaces/shop/tables/none"),
    (f"GET {CREDENTIALS}", "200"): of("GET", "namespaces/shop/tables/orders/credentials"),
    (f"GET {CREDENTIALS}", "400"): of("GET", "namespaces/shop/tables/a.b/credentials"),
    (f"GET {CREDENTIALS}", "404"): of("GET", "namespaces/shop/tables/none/credentials"),
    (f"POST {RENAME}", "204"): of("POST", "tables/rename", renamed("orders", "empty", "orders2")),
    (f"POST {RENAME}", "400"): of("POST", "tables/rename", renamed("orders", "shop", "a.b")),
    (f"POST {RENAME}", "404"): of("POST", "tables/rename", renamed("orders", "nowhere", "orders2")),
    (f"POST {RENAME}", "409"): of("POST", "tables/rename", renamed("orders", "shop", "lines")),
    (f"POST {METRICS}", "204"): of("POST", "namespaces/shop/tables/orders/metrics", REPORT),
    (f"POST {METRICS}", "400"): of("POST", "namespaces/shop/tables/orders/metrics", {"report-type": "scan-report"}),
    (f"POST {METRICS}", "404"): of("POST", "namespaces/shop/tables/none/metrics", REPORT),
    (f"POST {TRANSACTION}", "204"): lambda rest: rest.ask("POST", "transactions/commit", changes_of(rest)),
    (f"POST {TRANSACTION}", "400"): of("POST", "transactions/commit", {"table-changes": [UNKNOWN]}),
    (f"POST {TRANSACTION}", "404"): lambda rest: rest.ask("POST", "transactions/commit", changes_of(rest, "none")),
    (f"POST {TRANSACTION}", "409"): lambda rest: rest.ask("POST", "transactions/commit", changes_of(rest, "lines")),
}


def served() -> list[Operation]:
    named = {*ENDPOINTS, "GET /v1/config"}
    return [operation for operation in operations() if operation.name in named]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rest, Path]]:
    """A server, and a copy of its data directory to begin again from."""
    directory = tmp_path_factory.mktemp("rest")
    with serving(directory / "data") as rest:
        fill(rest)
        shutil.copytree(rest.data, directory / "copy")
        yield rest, directory / "copy"


@pytest.fixture
def rest(filled: tuple[Rest, Path]) -> Rest:
    """Two tables, one with a snapshot, and an empty namespace. One server for all: what a test before changed is put back."""
    rest, copy = filled
    shutil.copytree(copy / "warehouse", rest.data / "warehouse", dirs_exist_ok=True)
    with sqlite3.connect(rest.data / "catalog.db", isolation_level=None) as database:
        database.execute("ATTACH ? AS copy", (str(copy / "catalog.db"),))
        database.execute("PRAGMA synchronous=OFF")
        database.execute("BEGIN")
        for name in ROWS:
            database.execute(f"DELETE FROM main.{name}")
            database.execute(f"INSERT INTO main.{name} SELECT * FROM copy.{name}")
        database.execute("COMMIT")
    database.close()
    return rest


def fill(rest: Rest) -> None:
    metadata = rest.make()
    rest.make("lines")
    rest.ask("POST", "namespaces", {"namespace": ["empty"]})
    rest.commit({"action": "add-snapshot", "snapshot": snapshot(metadata)})


def test_every_endpoint_that_is_named_is_in_the_document_and_the_other_way_round(rest: Rest) -> None:
    named = rest.get("config")["endpoints"]
    documented = {operation.name for operation in operations()}
    assert len(named) == len(set(named)) == 17
    assert set(named) - documented == set()
    unserved = {name for name in documented - set(named) if not any(word in name for word in ("view", "function", "plan", "oauth"))}
    assert unserved == {"GET /v1/config", f"POST {TABLE}/tasks", f"POST {TABLE}/sign", f"POST {TABLE}/unregister"}


def test_every_status_of_the_document_has_a_case() -> None:
    wanted = {(operation.name, status) for operation in served() for status in operation.responses if status not in ELSEWHERE}
    refusals = {(operation.name, status) for operation in served() for status in ("401", "403")}
    assert wanted - NEVER - refusals - set(CASES) == set()
    assert set(CASES) - wanted - {(f"GET {TABLE}", "304")} == set()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_an_answer_is_what_the_document_says(rest: Rest, case: tuple[str, str]) -> None:
    name, status = case
    answer = CASES[case](rest)
    assert answer.status_code == int(status), answer.text
    require_documented(answer, next(one for one in served() if one.name == name), status)


def require_documented(answer: httpx.Response, operation: Operation, status: str) -> None:
    """The body, or that there is none, as the document has it for this status."""
    expected = body_schema(operation.responses[status]) if operation.method != "HEAD" else None
    if expected is None:
        assert answer.content == b""
        return
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    if int(status) >= 400:  # One response of the document forgets the envelope that its example has.
        expected = schema("IcebergErrorResponse")
        assert body["error"]["code"] == int(status)
    assert list(breaches(body, expected)) == []
    if "etag" in str(operation.responses[status]).lower() and operation.method == "GET":
        assert answer.headers["ETag"]


def path_of(operation: Operation) -> str:
    return operation.path.removeprefix("/v1/").removeprefix("{prefix}/").replace("{namespace}", "shop").replace("{table}", "orders")


def test_every_operation_asks_for_a_token_that_may(tmp_path: Path) -> None:
    with serving(tmp_path / "data", tokens=TOKENS) as rest:
        rest.client.headers["Authorization"] = f"Bearer {CHANGER}"
        fill(rest)
        for operation in served():
            changes = operation.method in ("POST", "DELETE") and operation.path != METRICS
            for token, status in (("", 401), ("dlk_wrong", 401), (SENDER, 403), (READER, 403 if changes else None)):
                rest.client.headers["Authorization"] = f"Bearer {token}" if token else ""
                if not token:
                    del rest.client.headers["Authorization"]
                answer = rest.ask(operation.method, path_of(operation), {} if operation.method == "POST" else None)
                if status is None:
                    assert answer.status_code in (200, 204, 400), (operation.name, answer.text)
                    continue
                assert answer.status_code == status, (operation.name, token[:8])
                assert ("WWW-Authenticate" in answer.headers) == (status == 401)
                require_documented(answer, operation, str(status))
        rest.client.headers["Authorization"] = f"Bearer {CHANGER}"
        assert rest.metadata()["properties"] == {}


def rename(rest: Rest, before: str, after: str) -> None:
    with contextlib.closing(sqlite3.connect(rest.data / "catalog.db")) as database, database:
        for name in ROWS:
            database.execute(f"ALTER TABLE {before.format(name)} RENAME TO {after.format(name)}")


def test_a_database_that_is_out_of_order_is_a_503_that_may_be_tried_again(rest: Rest) -> None:
    rename(rest, "{}", "{}_away")
    for (name, status), send in CASES.items():
        if int(status) < 300 and name not in ("GET /v1/config", f"POST {REGISTER}", f"POST {TABLE}", f"POST {TRANSACTION}"):
            answer = send(rest)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), name
            require_documented(answer, next(one for one in served() if one.name == name), "503")
    rename(rest, "{}_away", "{}")
    assert rest.metadata()["properties"] == {}


def test_metadata_that_is_gone_is_a_500_that_names_the_file(rest: Rest) -> None:
    location = table_of(rest)["metadata-location"]
    with serving(rest.data) as fresh:  # The other one still knows what it held.
        Path(location.removeprefix("file://")).unlink()
        answer = fresh.ask("GET", "namespaces/shop/tables/orders")
    assert refusal(answer)[:2] == (500, "InternalServerError")
    assert location in answer.text


@pytest.mark.parametrize("operation", [one for one in operations() if one not in served()], ids=lambda one: one.name)
def test_what_is_in_the_document_and_not_served_says_so(rest: Rest, operation: Operation) -> None:
    path = path_of(operation)
    for name in ("function", "view", "plan-id"):
        path = path.replace(f"{{{name}}}", "x")
    answer = rest.ask(operation.method, path, {} if operation.method == "POST" else None)
    assert answer.status_code == 406
    if operation.method != "HEAD":
        assert refusal(answer)[1] == "UnsupportedOperationException"


def test_a_path_that_nobody_has_and_a_method_that_is_none_are_told_apart(rest: Rest) -> None:
    assert refusal(rest.ask("GET", "nothing"))[:2] == (404, "NotFoundException")
    assert refusal(rest.ask("DELETE", "config"))[:2] == (405, "MethodNotAllowedException")


FIELDS_OF_BASE = {"action", "type"}


@pytest.mark.parametrize(("base", "kinds"), [("BaseUpdate", UPDATES), ("TableRequirement", REQUIREMENTS)])
def test_every_update_and_requirement_of_the_document_is_known_with_its_fields(base: str, kinds: dict[str, Any]) -> None:
    mapping = schema(base)["discriminator"]["mapping"]
    others = {"add-view-version", "set-current-view-version", "add-encryption-key", "remove-encryption-key"}
    assert set(kinds) == set(mapping) - others
    for name, kind in kinds.items():
        documented = schema(mapping[name].rsplit("/", 1)[-1])
        parts = [documented, *(schema(one["$ref"].rsplit("/", 1)[-1]) for one in documented.get("allOf", ()))]
        required = {field for part in parts for field in part.get("required", ())} - FIELDS_OF_BASE
        fields = {field for part in parts for field in part.get("properties", {})} - FIELDS_OF_BASE
        known = msgspec.structs.fields(kind)
        assert {field.encode_name for field in known if field.required} - FIELDS_OF_BASE == required, name
        assert {field.encode_name for field in known} - FIELDS_OF_BASE == fields - FIELDS_OF_BASE, name


def test_the_checker_itself_finds_what_is_wrong() -> None:
    error = schema("IcebergErrorResponse")
    assert list(breaches({"error": {"message": "x", "type": "y", "code": 400}}, error)) == []
    for wrong in (
        {},
        {"error": {"message": "x", "code": 400}},
        {"error": {"message": 1, "type": "y", "code": 400}},
        {"error": [], "more": 1},
    ):
        assert list(breaches(wrong, error)) != []
    assert list(breaches({"metadata": {"format-version": 2}}, schema("LoadTableResult"))) != []
