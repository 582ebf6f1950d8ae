"""What people send to the REST catalog: bad bodies, odd names, pages, caches, tokens, places outside the warehouse."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.harness.access import grant, new_token
from tests.http.rest import SCHEMA, Rest, add, good, properties, refusal, serving, snapshot, to_main


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    """For tests that change nothing, or only what is theirs by name."""
    with serving(tmp_path_factory.mktemp("rest") / "data") as rest:
        rest.make()
        yield rest


COMMIT, CREATE, TABLES = "namespaces/shop/tables/orders", "namespaces/shop/tables", "namespaces/shop/tables"
BAD: list[tuple[str, bytes, str]] = [
    ("namespaces", b"", "not JSON"),
    ("namespaces", b"{", "not JSON"),
    ("namespaces", b"\xff\xfe", "not JSON"),
    ("namespaces", b'{"namespace": "shop"}', "Expected `array`"),
    ("namespaces", b'{"namespace": [1]}', "Expected `str`"),
    ("namespaces", b'{"properties": {}}', "missing required field `namespace`"),
    ("namespaces", b'{"namespace": ["x"], "properties": {"a": null}}', "Expected `str`"),
    ("namespaces", b'{"namespace": ["x"], "properties": {"exists": "no"}}', "is not `exists`"),
    ("namespaces", b'{"namespace": ["x"], "properties": {"k": "' + b"v" * 1001 + b'"}}', "at most 1000 characters"),
    ("namespaces", b'{"namespace": ["dolake"]}', "dolake's own"),
    ("namespaces/shop/properties", b"[]", "Expected `object`"),
    ("namespaces/shop/properties", b'{"removals": "a"}', "Expected `array"),
    (CREATE, b'{"name": "x"}', "missing required field `schema`"),
    (CREATE, b'{"name": "x", "schema": []}', "Expected `object`"),
    (CREATE, b'{"name": "x", "schema": {"type": "struct", "fields": [{"id": 1}]}}', "schema"),
    (CREATE, b'{"name": "x", "schema": {"type": "struct", "fields": []}, "stage-create": "yes"}', "Expected `bool"),
    (CREATE, b'{"name": "x", "schema": {"type": "struct", "fields": []}, "properties": {"format-version": "3"}}', "version 2"),
    (CREATE, b'{"name": "x__changes", "schema": {"type": "struct", "fields": []}}', "dolake's own"),
    (COMMIT, b"{}", "missing required field `requirements`"),
    (COMMIT, b'{"requirements": []}', "missing required field `updates`"),
    (COMMIT, b'{"requirements": [{}], "updates": []}', "each requirement has a `type`"),
    (COMMIT, b'{"requirements": [{"type": "assert-luck"}], "updates": []}', "`assert-luck` is not known"),
    (COMMIT, b'{"requirements": [{"type": "assert-view-uuid", "uuid": "x"}], "updates": []}', "one of views"),
    (COMMIT, b'{"requirements": [{"type": "assert-ref-snapshot-id", "ref": "main"}], "updates": []}', "`snapshot-id`"),
    (COMMIT, b'{"requirements": [{"type": "assert-create", "more": 1}], "updates": []}', "unknown field `more`"),
    (COMMIT, b'{"requirements": [], "updates": [{"action": "set-properties"}]}', "missing required field `updates`"),
    (COMMIT, b'{"requirements": [], "updates": [{"action": 7}]}', "each update has a `action`"),
    (COMMIT, b'{"requirements": [], "updates": ["set-properties"]}', "Expected `object`"),
    (COMMIT, b'{"requirements": [], "updates": [], "identifier": {"namespace": ["shop"], "name": "other"}}', "the body another"),
    (COMMIT, b'{"requirements": [], "updates": [{"action": "remove-snapshots", "snapshot-ids": [18446744073709551616]}]}', "snapshot-ids"),
    (COMMIT, b'{"requirements": [], "updates": [{"action": "remove-snapshots", "snapshot-ids": [NaN]}]}', "not JSON"),
    (f"{COMMIT}/metrics", b'{"report-type": "gossip"}', "gossip"),
    ("tables/rename", b'{"source": {"namespace": ["shop"], "name": "orders"}}', "missing required field `destination`"),
    ("tables/rename", b'{"source": {"name": "a"}, "destination": {"name": "b"}}', "missing required field `namespace`"),
    ("transactions/commit", b'{"table-changes": {}}', "Expected `array`"),
    ("namespaces/shop/register", b'{"name": "x"}', "missing required field `metadata-location`"),
]


@pytest.mark.parametrize(("path", "body", "words"), BAD, ids=lambda value: value[:60] if isinstance(value, str) else "")
def test_a_body_that_is_wrong_is_refused_and_says_where(shared: Rest, path: str, body: bytes, words: str) -> None:
    before = shared.get(COMMIT)["metadata-location"]
    status, kind, message = refusal(shared.ask("POST", path, body))
    assert (status, kind) == (400, "BadRequestException")
    assert words in message, message
    assert shared.get(COMMIT)["metadata-location"] == before


def test_a_body_above_the_limit_is_not_taken(shared: Rest) -> None:
    answer = shared.ask("POST", COMMIT, b" " * (17 << 20))
    assert refusal(answer)[0] == 413


def test_a_page_in_a_browser_may_not_ask(shared: Rest) -> None:
    assert refusal(shared.ask("GET", "config", headers={"Origin": "http://evil.example"}))[:2] == (403, "ForbiddenException")


ODD = ["a b", "ünïcode", "日本", "🦆", "sla/sh", "per%cent", "quo'te", 'dou"ble', "semi;colon", "back\\slash", "plus+", "_like_%", "A", "a"]


def test_odd_names_go_there_and_back(tmp_path: Path) -> None:
    """As levels of namespaces and as tables; their folders lie in the warehouse whatever they are called."""
    with serving(tmp_path / "data") as rest:
        for name in ODD:
            for levels in ([name], [name, name]):
                assert rest.post("namespaces", {"namespace": levels}) == {"namespace": levels, "properties": {}}
            path = quote(f"{name}\x1f{name}", safe="")
            made = rest.post(f"namespaces/{path}/tables", {"name": name, "schema": SCHEMA})
            folder = made["metadata"]["location"].removeprefix(f"{rest.root}/")
            assert set(folder) <= set("/-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"), folder
            assert rest.ask("HEAD", f"namespaces/{path}/tables/{quote(name, safe='')}").status_code == 204
            assert rest.get(f"namespaces/{path}/tables")["identifiers"] == [{"namespace": [name, name], "name": name}]
            children = rest.get("namespaces", params={"parent": name})["namespaces"]
            assert children == [[name, name]]
        assert rest.get("namespaces")["namespaces"] == [[name] for name in sorted(ODD)]
        for name in ODD:
            path = quote(f"{name}\x1f{name}", safe="")
            assert rest.ask("DELETE", f"namespaces/{path}/tables/{quote(name, safe='')}").status_code == 204
            for gone in (path, quote(name, safe="")):
                assert rest.ask("DELETE", f"namespaces/{gone}").status_code == 204
        assert rest.get("namespaces")["namespaces"] == []


@pytest.mark.parametrize("name", ["", ".", "..", "../../evil", "a.b", "nu\x00ll", "new\nline", "sep\x1farator", "x" * 256, "\ud800"])
def test_names_that_cannot_be_are_refused_wherever_they_stand(shared: Rest, name: str) -> None:
    sent = json.dumps({"name": name, "schema": SCHEMA}).encode()
    answers = [
        shared.ask("POST", TABLES, sent),
        shared.ask("POST", "namespaces", json.dumps({"namespace": ["shop", name]}).encode()),
        shared.ask(
            "POST",
            "tables/rename",
            json.dumps(
                {"source": {"namespace": ["shop"], "name": "orders"}, "destination": {"namespace": ["shop"], "name": name}}
            ).encode(),
        ),
    ]
    if name.strip(".") and "\ud800" not in name:  # The client itself takes dots out of a path.
        quoted = quote(name, safe="")
        answers += [shared.ask("GET", f"{TABLES}/{quoted}"), shared.ask("POST", f"namespaces/shop%1F{quoted}/properties", {})]
        if name == "sep\x1farator":  # In a path it is two levels.
            assert refusal(answers.pop())[0] == 404
    assert {refusal(answer)[:2] for answer in answers if answer.is_error} == {(400, "BadRequestException")}
    assert all(answer.is_error for answer in answers)


def test_a_path_that_is_no_text_is_refused(shared: Rest) -> None:
    assert refusal(shared.ask("GET", "namespaces/%ff%fe"))[:2] == (400, "BadRequestException")


OUTSIDE = ["file:///tmp/evil", "s3://bucket/evil", "/etc", "{root}", "{root}/", "{root}/../evil", "{root}/a/../../evil", "{root}/./a"]
OUTSIDE += ["{root}//a", "{root}-evil/a", "{root}/a\n", "file://{host}/x", "{root}/a/.."]


@pytest.mark.parametrize("location", OUTSIDE)
def test_nothing_is_put_outside_the_warehouse(shared: Rest, location: str) -> None:
    place = location.replace("{root}", shared.root)
    answers = [
        shared.ask("POST", TABLES, {"name": "evil", "schema": SCHEMA, "location": place}),
        shared.try_commit([{"action": "set-location", "location": place}]),
        shared.ask("POST", "namespaces/shop/register", {"name": "evil", "metadata-location": place}),
        shared.try_commit([add(snapshot(shared.metadata(), **{"manifest-list": place}))]) if place.rstrip("/") == place else None,
    ]
    for answer in answers:
        if answer is not None:
            assert refusal(answer)[:2] == (400, "BadRequestException")
    assert shared.ask("HEAD", f"{TABLES}/evil").status_code == 404


def test_no_table_is_put_into_the_folder_of_another(shared: Rest) -> None:
    taken = shared.metadata()["location"]
    for location in (taken, f"{taken}/inside", taken.rsplit("/", 1)[0]):
        answer = shared.ask("POST", TABLES, {"name": "guest", "schema": SCHEMA, "location": location})
        assert "in the way of shop.orders" in refusal(answer)[2]
    beside = shared.post(TABLES, {"name": "guest", "schema": SCHEMA, "location": f"{taken}-beside"})["metadata"]
    assert beside["location"] == f"{taken}-beside"
    assert "in the way" in refusal(shared.try_commit([{"action": "set-location", "location": taken}], name="guest"))[2]


def test_a_name_that_was_given_away_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as rest:
        first = rest.make()["location"]
        here = {"namespace": ["shop"], "name": "orders"}
        good(rest.ask("POST", "tables/rename", {"source": here, "destination": {**here, "name": "old"}}))
        second = rest.make()["location"]
        assert rest.metadata("old")["location"] == first
        assert not second.startswith(first)
        assert not first.startswith(second)


def test_a_purge_deletes_the_tables_files_and_no_others(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as rest:
        metadata, other = rest.make(), rest.make("other")
        precious = Path(other["location"].removeprefix("file://"), "metadata/stats.puffin")
        precious.write_bytes(b"another's")
        one = snapshot(metadata)
        foreign = {
            "snapshot-id": one["snapshot-id"],
            "statistics-path": f"file://{precious}",
            "file-size-in-bytes": 9,
            "file-footer-size-in-bytes": 1,
            "blob-metadata": [],
        }
        rest.commit(add(one), to_main(one["snapshot-id"]), {"action": "set-statistics", "statistics": foreign})
        folder = Path(metadata["location"].removeprefix("file://"))
        stray = folder / "data" / "nobody-named-me.parquet"
        stray.parent.mkdir()
        stray.write_bytes(b"x")
        assert rest.ask("DELETE", f"{TABLES}/orders?purgeRequested=true").status_code == 204
        assert [path for path in folder.rglob("*") if path.is_file()] == [stray]
        assert precious.read_bytes() == b"another's"
        assert rest.ask("DELETE", f"{TABLES}/other").status_code == 204
        assert precious.exists()


def test_a_table_that_was_dropped_is_registered_again_under_any_name(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as rest:
        rest.make()
        rest.commit(properties(a="1"))
        loaded = rest.get(f"{TABLES}/orders")
        sent = {"name": "again", "metadata-location": loaded["metadata-location"]}
        assert "in the way of shop.orders" in refusal(rest.ask("POST", "namespaces/shop/register", sent))[2]
        assert rest.ask("DELETE", f"{TABLES}/orders").status_code == 204
        assert rest.post("namespaces/shop/register", sent)["metadata"] == loaded["metadata"]
        for content, words in ((b"{}", "not a table's metadata"), (b"\x00", "not a table's metadata"), (None, "nothing at")):
            path = Path(loaded["metadata-location"].removeprefix("file://")).with_name("00009-broken.metadata.json")
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            broken = {"name": "broken", "metadata-location": f"file://{path}"}
            assert words in refusal(rest.ask("POST", "namespaces/shop/register", broken))[2]
        old = rest.get(f"{TABLES}/again")
        rest.commit(properties(b="2"), name="again")
        back = rest.post("namespaces/shop/register", {**sent, "overwrite": True})
        assert (back["metadata"], rest.get(f"{TABLES}/again")["metadata"]) == (old["metadata"], old["metadata"])


def test_a_staged_table_is_not_there_until_it_is_committed(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as rest:
        rest.ask("POST", "namespaces", {"namespace": ["shop"]})
        staged = rest.post(TABLES, {"name": "orders", "schema": SCHEMA, "stage-create": True})
        assert "metadata-location" not in staged
        assert rest.ask("HEAD", f"{TABLES}/orders").status_code == 404
        metadata = staged["metadata"]
        updates = [
            {"action": "assign-uuid", "uuid": metadata["table-uuid"]},
            {"action": "add-schema", "schema": metadata["schemas"][0]},
            {"action": "set-current-schema", "schema-id": -1},
            {"action": "set-location", "location": metadata["location"]},
        ]
        made = good(rest.try_commit(updates, [{"type": "assert-create"}]))["metadata"]
        assert (made["table-uuid"], made["location"], made["schemas"]) == (
            metadata["table-uuid"],
            metadata["location"],
            metadata["schemas"],
        )
        assert refusal(rest.try_commit(updates, [{"type": "assert-create"}]))[:2] == (409, "CommitFailedException")


def test_a_created_table_has_fresh_ids_and_what_was_asked_for(tmp_path: Path) -> None:
    fields = [{"id": 70, "name": "id", "required": True, "type": "long"}, {"id": 9, "name": "at", "required": False, "type": "timestamp"}]
    sent = {
        "name": "orders",
        "schema": {"type": "struct", "fields": fields, "identifier-field-ids": [70]},
        "partition-spec": {"fields": [{"source-id": 9, "transform": "day", "name": "at_day"}]},
        "write-order": {"order-id": 3, "fields": [
            {"source-id": 70, "transform": "identity", "direction": "asc", "null-order": "nulls-last"}]},
        "properties": {"format-version": "2", "a": "b"},
    }  # fmt: skip
    with serving(tmp_path / "data") as rest:
        rest.ask("POST", "namespaces", {"namespace": ["shop"]})
        made = rest.post(TABLES, sent)["metadata"]
    assert [(one["id"], one["name"]) for one in made["schemas"][0]["fields"]] == [(1, "id"), (2, "at")]
    assert made["schemas"][0]["identifier-field-ids"] == [1]
    assert made["partition-specs"] == [{"spec-id": 0, "fields": [{"source-id": 2, "field-id": 1000, "transform": "day", "name": "at_day"}]}]
    assert made["sort-orders"][0]["fields"][0]["source-id"] == 1
    assert (made["default-sort-order-id"], made["format-version"], made["properties"]) == (1, 2, {"a": "b"})
    assert (made["last-column-id"], made["last-partition-id"]) == (2, 1000)


def pages(rest: Rest, path: str, key: str, size: int, **more: Any) -> list[Any]:
    found, token = [], ""
    while token is not None:
        page = rest.get(path, params={"pageToken": token, "pageSize": size, **more})
        assert len(page[key]) <= size
        found += page[key]
        token = page["next-page-token"]
    return found


def test_lists_come_in_pages_and_whole(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(7)]
    with serving(tmp_path / "data") as rest:
        for name in names:
            rest.make(name)
            rest.ask("POST", "namespaces", {"namespace": ["shop", name]})
        whole = rest.get(TABLES)
        assert ([one["name"] for one in whole["identifiers"]], whole["next-page-token"]) == (names, None)
        for size in (1, 3, 7, 100):
            assert pages(rest, TABLES, "identifiers", size) == whole["identifiers"]
            assert pages(rest, "namespaces", "namespaces", size, parent="shop") == [["shop", name] for name in names]
        first = rest.get(TABLES, params={"pageSize": 3})
        rest.ask("DELETE", f"{TABLES}/t2")  # The one that the page ended with.
        rest.make("t25")
        rest_of_it = rest.get(TABLES, params={"pageToken": first["next-page-token"], "pageSize": 10})
        assert [one["name"] for one in rest_of_it["identifiers"]] == ["t25", "t3", "t4", "t5", "t6"]
        for made_up in ("x", "AAAA", "ünïcode", first["next-page-token"][:-2] + "AA", "a" * 5000):
            assert refusal(rest.ask("GET", TABLES, params={"pageToken": made_up}))[:2] == (400, "BadRequestException")
        wrong_list = {"parent": "shop", "pageToken": first["next-page-token"]}
        assert refusal(rest.ask("GET", "namespaces", params=wrong_list))[0] == 400
        for size in ("0", "-1", "x", "1.5", ""):
            assert refusal(rest.ask("GET", TABLES, params={"pageSize": size}))[0] == 400, size


def test_an_etag_changes_with_the_table_and_with_what_is_shown_of_it(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as rest:
        metadata = rest.make()
        one, two = snapshot(metadata), snapshot(metadata, **{"sequence-number": 2})
        rest.commit(add(one), add(two), to_main(two["snapshot-id"]))
        whole, named = rest.ask("GET", f"{TABLES}/orders"), rest.ask("GET", f"{TABLES}/orders?snapshots=refs")
        assert len(whole.json()["metadata"]["snapshots"]) == 2
        assert [shown["snapshot-id"] for shown in named.json()["metadata"]["snapshots"]] == [two["snapshot-id"]]
        tags = [whole.headers["ETag"], named.headers["ETag"]]
        assert len(set(tags)) == 2
        for tag, path in zip(tags, ("orders", "orders?snapshots=refs"), strict=True):
            same = rest.ask("GET", f"{TABLES}/{path}", headers={"If-None-Match": f'"other", W/{tag}'})
            assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", tag)
        assert rest.ask("GET", f"{TABLES}/orders", headers={"If-None-Match": tags[1]}).status_code == 200
        made = rest.try_commit([properties(a="1")])
        assert made.headers["ETag"] not in tags
        assert rest.ask("GET", f"{TABLES}/orders", headers={"If-None-Match": made.headers["ETag"]}).status_code == 304
        assert rest.ask("GET", f"{TABLES}/orders", headers={"If-None-Match": tags[0]}).status_code == 200


def test_namespaces_have_properties_and_outlive_them(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as rest:
        rest.post("namespaces", {"namespace": ["shop"], "properties": {"a": "1", "b": "2"}})
        change = {"removals": ["a", "never"], "updates": {"b": "3", "c": "4"}}
        assert rest.post("namespaces/shop/properties", change) == {"updated": ["b", "c"], "removed": ["a"], "missing": ["never"]}
        assert rest.get("namespaces/shop") == {"namespace": ["shop"], "properties": {"b": "3", "c": "4"}}
        rest.post("namespaces/shop/properties", {"removals": ["b", "c"]})
        assert rest.get("namespaces/shop") == {"namespace": ["shop"], "properties": {}}
        rest.post("namespaces", {"namespace": ["shop", "eu", "north"]})
        assert rest.get("namespaces?parent=shop")["namespaces"] == [["shop", "eu"]]
        assert refusal(rest.ask("DELETE", "namespaces/shop"))[:2] == (409, "NamespaceNotEmptyException")
        assert rest.ask("DELETE", "namespaces/shop%1Feu%1Fnorth").status_code == 204
        assert rest.ask("DELETE", "namespaces/shop").status_code == 204


def test_what_pyiceberg_or_others_left_in_the_rows_is_understood(tmp_path: Path) -> None:
    """A namespace without our marker, and the row of a view, which is no table but has its name."""
    with serving(tmp_path / "data") as rest:
        rest.make()
        with contextlib.closing(sqlite3.connect(rest.data / "catalog.db")) as database, database:
            database.execute("INSERT INTO iceberg_namespace_properties VALUES ('dolake', 'theirs', 'owner', 'me')")
            database.execute("INSERT INTO iceberg_tables VALUES ('dolake', 'shop', 'a_view', 'file:///x', NULL, 'VIEW')")
            database.execute("INSERT INTO iceberg_tables VALUES ('another', 'shop', 'foreign', 'file:///x', NULL, 'TABLE')")
        assert rest.get("namespaces/theirs")["properties"] == {"owner": "me"}
        assert refusal(rest.ask("POST", "namespaces", {"namespace": ["theirs"]}))[0] == 409
        rest.post("namespaces/theirs/properties", {"removals": ["owner"]})
        assert rest.ask("HEAD", "namespaces/theirs").status_code == 204
        assert [one["name"] for one in rest.get(TABLES)["identifiers"]] == ["orders"]
        assert rest.ask("HEAD", f"{TABLES}/a_view").status_code == 404
        assert refusal(rest.ask("POST", TABLES, {"name": "a_view", "schema": SCHEMA}))[:2] == (409, "AlreadyExistsException")


def test_the_warehouse_may_be_named(shared: Rest) -> None:
    for name in ("dolake", shared.root, shared.root + "/"):
        assert shared.get("config", params={"warehouse": name})["overrides"] == {}
    assert refusal(shared.ask("GET", "config", params={"warehouse": "other"}))[:2] == (404, "NoSuchWarehouseException")


S3 = {"endpoint": "http://inside:9000", "region": "eu-x", "access_key": "inner", "secret_key": "secret"}
ASKING = {"X-Iceberg-Access-Delegation": "remote-signing, vended-credentials"}
VENDED = [
    ({}, {}, {}),
    (
        {"vend": "endpoint", "endpoint": "http://outside:9000"},
        {"s3.endpoint": "http://outside:9000", "s3.region": "eu-x", "client.region": "eu-x", "s3.path-style-access": "true"},
        {},
    ),
    (
        {"vend": "credentials"},
        {"s3.endpoint": "http://inside:9000", "s3.region": "eu-x", "client.region": "eu-x", "s3.path-style-access": "true"},
        {"s3.access-key-id": "inner", "s3.secret-access-key": "secret"},
    ),
    (
        {"vend": "credentials", "access_key": "reader", "secret_key": "theirs"},
        {"s3.endpoint": "http://inside:9000", "s3.region": "eu-x", "client.region": "eu-x", "s3.path-style-access": "true"},
        {"s3.access-key-id": "reader", "s3.secret-access-key": "theirs"},
    ),
]


@pytest.mark.parametrize(("catalog", "config", "keys"), VENDED, ids=["off", "endpoint", "credentials", "other-keys"])
def test_what_is_vended_is_what_is_set_and_keys_only_to_who_asks(
    catalog: dict[str, str], config: dict[str, str], keys: dict[str, str]
) -> None:
    """Staged answers need no bucket: here the settings alone are judged."""
    from dolake.config import Settings
    from dolake.iceberg.rest import vending_of
    from dolake.iceberg.rest_reading import RestReading

    settings = Settings.model_validate({"data": "/x", "warehouse": {"uri": "s3://lake"}, "s3": S3, "catalog": catalog})
    reading = RestReading(None, None, "s3://lake", vending_of(settings))  # type: ignore[arg-type]
    plain, asked = (json.loads(reading.result(b"{}", "s3://lake/x", delegated)) for delegated in (False, True))
    assert plain == {"metadata-location": "s3://lake/x", "metadata": {}, "config": config}
    assert asked["config"] == {**config, **keys}
    assert asked.get("storage-credentials", []) == reading.credentials()
    assert reading.credentials() == ([{"prefix": "s3://lake", "config": {**config, **keys}}] if keys else [])


def test_of_a_local_warehouse_nothing_is_vended(tmp_path: Path) -> None:
    with serving(tmp_path / "data", catalog={"vend": "credentials"}, s3=S3) as rest:
        rest.make()
        loaded = rest.get(f"{TABLES}/orders", headers=ASKING)
    assert (loaded["config"], "storage-credentials" in loaded) == ({}, False)


SHOP, ALL, LOOKS = (new_token() for _ in range(3))
TOKENS = {
    "shop": grant(SHOP, read=True, catalog=True, tables=["shop.o*", "eu.north*"]),
    "all": grant(ALL, read=True, catalog=True),
    "looks": grant(LOOKS, read=True),
}


def test_a_token_with_tables_sees_and_changes_these_only(tmp_path: Path) -> None:
    with serving(tmp_path / "data", tokens=TOKENS) as rest:
        rest.client.headers["Authorization"] = f"Bearer {ALL}"
        for namespace, name in (("shop", "orders"), ("shop", "secret"), ("bank", "accounts")):
            rest.make(name, namespace)
        rest.post("namespaces", {"namespace": ["shop", "deeper"]})
        location = rest.get("namespaces/shop/tables/secret")["metadata-location"]
        rest.client.headers["Authorization"] = f"Bearer {SHOP}"
        assert rest.get("namespaces")["namespaces"] == [["shop"]]
        assert [one["name"] for one in rest.get(TABLES)["identifiers"]] == ["orders"]
        rest.commit(properties(a="1"))
        here = {"namespace": ["shop"], "name": "orders"}
        refused = [
            rest.ask("GET", "namespaces/bank"),
            rest.ask("GET", "namespaces?parent=bank"),
            rest.ask("GET", "namespaces/bank/tables"),
            rest.ask("POST", "namespaces", {"namespace": ["bank", "x"]}),
            rest.ask("POST", "namespaces/bank/properties", {"updates": {}}),
            rest.ask("GET", f"{TABLES}/secret"),
            rest.ask("GET", f"{TABLES}/never-was"),
            rest.ask("GET", f"{TABLES}/secret/credentials"),
            rest.ask("POST", f"{TABLES}/secret", {"requirements": [], "updates": []}),
            rest.ask("DELETE", f"{TABLES}/secret"),
            rest.ask("POST", TABLES, {"name": "mine", "schema": SCHEMA}),
            rest.ask("POST", "namespaces/shop/register", {"name": "mine", "metadata-location": location}),
            rest.ask("POST", "tables/rename", {"source": here, "destination": {**here, "name": "x"}}),
            rest.ask("POST", "tables/rename", {"source": {**here, "name": "secret"}, "destination": {**here, "name": "oops"}}),
            rest.ask(
                "POST",
                "transactions/commit",
                {"table-changes": [{"identifier": {**here, "name": "secret"}, "requirements": [], "updates": []}]},
            ),
        ]
        assert {refusal(answer)[:2] for answer in refused} == {(403, "ForbiddenException")}
        rest.client.headers["Authorization"] = f"Bearer {LOOKS}"
        assert rest.get("namespaces")["namespaces"] == [["bank"], ["shop"]]
        assert refusal(rest.try_commit([properties(a="2")]))[:2] == (403, "ForbiddenException")
        assert rest.metadata()["properties"] == {"a": "1"}


def test_requests_are_counted_by_template(shared: Rest) -> None:
    for number in range(5):
        shared.ask("GET", f"{TABLES}/never-{number}")
        shared.ask("GET", f"made-up/{number}")
    lines = [line for line in shared.client.get("/metrics").text.splitlines() if line.startswith("dolake_http_requests_total")]
    paths = {line.split('path="')[1].split('"')[0] for line in lines}
    assert "/v1/namespaces/{namespace}/tables/{table}" in paths
    assert "/v1/other" in paths
    assert not any("never" in path or "made-up" in path for path in paths)


def test_a_catalog_alone_says_how_it_is(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as rest:
        assert rest.client.get("/health").json() == {"alive": True}
        assert rest.client.get("/ready").json() == {"ready": True, "reasons": []}
        with contextlib.closing(sqlite3.connect(rest.data / "catalog.db")) as database, database:
            database.execute("DROP TABLE iceberg_tables")
        assert rest.client.get("/ready").status_code == 503
        assert rest.client.get("/nothing").status_code == 404
