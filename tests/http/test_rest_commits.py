"""Commits through the REST catalog: many at once, several tables at once, replies that are lost, what dolake alone may change."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from dolake import failpoints
from tests.http.rest import SCHEMA, Rest, add, good, main_is, properties, refusal, serving, snapshot, to_main

CLIENTS = 50


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[Rest]:
    with serving(tmp_path / "data") as rest:
        yield rest


def all_at_once(count: int, work: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    together = threading.Barrier(count)

    def one(number: int) -> httpx.Response:
        together.wait(60)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def conflicting(rests: list[Rest]) -> list[httpx.Response]:
    """As many clients put a snapshot of their own on the same base; each asks one of the servers."""
    base = rests[0].metadata()
    made = [snapshot(base) for _ in range(CLIENTS)]

    def commit(number: int) -> httpx.Response:
        one = made[number]
        return rests[number % len(rests)].try_commit([add(one), to_main(one["snapshot-id"])], [main_is(base)])

    return all_at_once(CLIENTS, commit)


def assert_one_won(answers: list[httpx.Response], after: dict[str, Any], before: dict[str, Any]) -> None:
    won = [answer for answer in answers if answer.status_code == 200]
    assert len(won) == 1
    assert {refusal(answer)[:2] for answer in answers if answer.status_code != 200} == {(409, "CommitFailedException")}
    assert won[0].json()["metadata"]["current-snapshot-id"] == after["current-snapshot-id"]
    assert len(after["snapshots"]) == len(before["snapshots"]) + 1


def test_of_fifty_conflicting_commits_one_wins_for_each_base(rest: Rest) -> None:
    rest.make()
    for _ in range(3):
        before = rest.metadata()
        assert_one_won(conflicting([rest]), rest.metadata(), before)
    snapshots = rest.metadata()["snapshots"]
    assert [one.get("parent-snapshot-id") for one in snapshots] == [None, *(one["snapshot-id"] for one in snapshots[:-1])]


def test_it_is_so_between_two_servers_over_one_database(rest: Rest) -> None:
    rest.make()
    with serving(rest.data) as other:
        before = rest.metadata()
        assert_one_won(conflicting([rest, other]), other.metadata(), before)


def test_commits_that_do_not_conflict_all_land_and_none_undoes_another(rest: Rest) -> None:
    rest.make()
    answers = all_at_once(CLIENTS, lambda number: rest.try_commit([properties(**{f"key-{number}": str(number)})]))
    assert {answer.status_code for answer in answers} == {200}
    assert rest.metadata()["properties"] == {f"key-{number}": str(number) for number in range(CLIENTS)}


def test_between_two_servers_no_update_that_was_said_to_land_is_lost(rest: Rest) -> None:
    """Some may be told to try again; nobody is told that they landed and then did not."""
    rest.make()
    with serving(rest.data) as other:
        servers = [rest, other]
        answers = all_at_once(20, lambda number: servers[number % 2].try_commit([properties(**{f"key-{number}": "x"})]))
    landed = {f"key-{number}" for number, answer in enumerate(answers) if answer.status_code == 200}
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert landed
    assert set(rest.metadata()["properties"]) == landed


def test_two_clients_make_one_table_and_one_of_them_is_told_so(rest: Rest) -> None:
    rest.ask("POST", "namespaces", {"namespace": ["shop"]})
    answers = all_at_once(10, lambda number: rest.ask("POST", "namespaces/shop/tables", {"name": "orders", "schema": SCHEMA}))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    assert {refusal(answer)[1] for answer in answers if answer.status_code == 409} == {"AlreadyExistsException"}
    (won,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert rest.metadata()["table-uuid"] == won["metadata"]["table-uuid"]


def test_a_snapshot_id_beyond_what_a_float_holds_comes_back_to_the_digit(rest: Rest) -> None:
    metadata = rest.make()
    for snapshot_id in (2**53 + 1, 2**63 - 1):
        one = snapshot(metadata, **{"snapshot-id": snapshot_id})
        metadata = rest.commit(add(one), to_main(snapshot_id), requirements=[main_is(metadata)])
        assert f'"current-snapshot-id":{snapshot_id}' in rest.ask("GET", "namespaces/shop/tables/orders").text
    too_large = snapshot(metadata, **{"snapshot-id": 2**63})
    assert refusal(rest.try_commit([add(too_large)]))[0] == 400


def changes(*tables: tuple[str, list[dict[str, Any]], list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "table-changes": [
            {"identifier": {"namespace": ["shop"], "name": name}, "requirements": requirements, "updates": updates}
            for name, requirements, updates in tables
        ]
    }


STALE = [{"type": "assert-current-schema-id", "current-schema-id": 9}]


def test_a_transaction_changes_all_of_its_tables_or_none(rest: Rest) -> None:
    for name in ("orders", "lines", "customers"):
        rest.make(name)
    done = rest.ask("POST", "transactions/commit", changes(*((name, [], [properties(a="1")]) for name in ("orders", "lines", "customers"))))
    assert (done.status_code, done.content) == (204, b"")
    before = [rest.get(f"namespaces/shop/tables/{name}") for name in ("orders", "lines", "customers")]
    broken = changes(("orders", [], [properties(a="2")]), ("lines", [], [properties(a="2")]), ("customers", STALE, [properties(a="2")]))
    assert refusal(rest.ask("POST", "transactions/commit", broken))[:2] == (409, "CommitFailedException")
    assert [rest.get(f"namespaces/shop/tables/{name}") for name in ("orders", "lines", "customers")] == before
    assert before[2]["metadata"]["properties"] == {"a": "1"}


def test_a_transaction_may_make_a_table_and_change_another(rest: Rest) -> None:
    rest.make()
    create = [{"action": "add-schema", "schema": SCHEMA}, {"action": "set-current-schema", "schema-id": -1}]
    both = changes(("orders", [], [properties(a="1")]), ("new", [{"type": "assert-create"}], create))
    assert rest.ask("POST", "transactions/commit", both).status_code == 204
    assert (rest.metadata()["properties"], rest.metadata("new")["last-column-id"]) == ({"a": "1"}, 3)
    again = rest.ask(
        "POST", "transactions/commit", changes(("orders", [], [properties(a="2")]), ("new", [{"type": "assert-create"}], create))
    )
    assert refusal(again)[:2] == (409, "CommitFailedException")
    assert rest.metadata()["properties"] == {"a": "1"}


def test_a_transaction_names_each_table_once_and_every_table(rest: Rest) -> None:
    rest.make()
    twice = changes(("orders", [], [properties(a="1")]), ("orders", [], [properties(a="2")]))
    assert "names each table once" in refusal(rest.ask("POST", "transactions/commit", twice))[2]
    nameless = {"table-changes": [{"requirements": [], "updates": []}]}
    assert "`identifier`" in refusal(rest.ask("POST", "transactions/commit", nameless))[2]
    assert rest.metadata()["properties"] == {}


def test_a_transaction_loses_to_a_commit_that_came_between_and_leaves_nothing(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table was planned; of the second the base is swapped away before the swap: the first must not land either."""
    from dolake.iceberg.rest_commit import RestCommits

    rest.make("orders")
    rest.make("lines")
    swap_in, meddled = RestCommits.swap_in, []

    def meddle(self: RestCommits, planned: Any) -> Any:
        if len(planned) == 2 and len(meddled) < 7:  # More often than it tries.
            with serving(rest.data) as other:
                meddled.append(other.commit(properties(**{f"k{len(meddled)}": "x"}), name="lines"))
        return swap_in(self, planned)

    monkeypatch.setattr(RestCommits, "swap_in", meddle)
    answer = rest.ask("POST", "transactions/commit", changes(("orders", [], [properties(a="1")]), ("lines", [], [properties(a="1")])))
    assert refusal(answer)[:2] == (409, "CommitFailedException")
    assert rest.metadata("orders")["properties"] == {}
    assert rest.metadata("lines")["properties"] == {f"k{number}": "x" for number in range(len(meddled))}


@contextlib.contextmanager
def armed(point: str, action: str) -> Iterator[None]:
    failpoints.REGISTRY.arm(point, action)
    try:
        yield
    finally:
        failpoints.REGISTRY.disarm(point)


def test_a_reply_that_is_lost_leaves_a_commit_that_a_second_try_finds_done(rest: Rest) -> None:
    """The database has done it, and what should have told so has failed: an unknown outcome, not a no."""
    metadata = rest.make()
    one = snapshot(metadata)
    updates, wanted = [add(one), to_main(one["snapshot-id"])], [main_is(metadata)]
    with armed("catalog.after_swap", "1*raise(gone)"):
        assert refusal(rest.try_commit(updates, wanted))[:2] == (500, "CommitStateUnknownException")
    assert rest.metadata()["current-snapshot-id"] == one["snapshot-id"]
    assert refusal(rest.try_commit(updates, wanted))[:2] == (409, "CommitFailedException")


def test_a_commit_whose_end_the_database_does_not_answer_is_unknown_unless_a_look_tells(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.engine import Transaction
    from sqlalchemy.exc import OperationalError

    rest.make()
    commit, does = Transaction.commit, [True]

    def deaf(self: Transaction) -> None:
        if does[0]:
            commit(self)
        else:
            self.rollback()
        raise OperationalError("COMMIT", {}, Exception("the connection was lost"))

    monkeypatch.setattr(Transaction, "commit", deaf)
    assert good(rest.try_commit([properties(a="1")]))["metadata"]["properties"] == {"a": "1"}
    does[0] = False
    assert refusal(rest.try_commit([properties(a="2")]))[:2] == (500, "CommitStateUnknownException")
    monkeypatch.undo()
    assert rest.metadata()["properties"] == {"a": "1"}


def test_a_locked_database_is_a_no_that_says_try_again_and_nothing_happened(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dolake.iceberg.database.WAIT_S_MAX", 0)
    rest.make()
    with serving(rest.data) as impatient, contextlib.closing(sqlite3.connect(rest.data / "catalog.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        answer = impatient.try_commit([properties(a="1")])
        holder.execute("ROLLBACK")
        assert refusal(answer)[:2] == (503, "ServiceUnavailableException")
        assert answer.headers["Retry-After"] == "1"
        assert impatient.metadata()["properties"] == {}


def test_what_goes_into_a_catalog_file_that_is_replaced_meanwhile_is_not_said_to_have_landed(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.engine import Transaction

    rest.make()
    path, copy = rest.data / "catalog.db", rest.data / "restored.db"
    shutil.copy(path, copy)
    commit = Transaction.commit

    def replace_and_commit(self: Transaction) -> None:
        if copy.exists():
            os.replace(copy, path)
        commit(self)

    monkeypatch.setattr(Transaction, "commit", replace_and_commit)
    assert refusal(rest.try_commit([properties(a="1")]))[:2] == (500, "CommitStateUnknownException")
    assert not copy.exists()
    assert rest.metadata()["properties"] == {}
    assert good(rest.try_commit([properties(a="2")]))["metadata"]["properties"] == {"a": "2"}


OWNED = {"dolake.offset.log-a": "10", "dolake.epoch": "2", "dolake.instance": "one"}


def own(rest: Rest) -> dict[str, Any]:
    """Makes the table dolake's, by a commit of the form that dolake's have."""
    metadata = rest.make()
    return claimed(rest, metadata, OWNED)


def claimed(rest: Rest, metadata: dict[str, Any], values: dict[str, str], **summary: str) -> dict[str, Any]:
    return good(try_claim(rest, metadata, values, **summary))["metadata"]  # type: ignore[no-any-return]


def try_claim(rest: Rest, metadata: dict[str, Any], values: dict[str, str], **summary: str) -> httpx.Response:
    said = {"operation": "append", "dolake.commit-id": "c", **values, **{key.replace("_", "."): value for key, value in summary.items()}}
    one = snapshot(metadata, summary=said)
    return rest.try_commit([add(one), to_main(one["snapshot-id"]), properties(**values)], [main_is(metadata)])


def test_others_may_commit_to_a_table_of_dolake_but_not_change_what_it_has_applied(rest: Rest) -> None:
    metadata = own(rest)
    one = snapshot(metadata)
    metadata = rest.commit(add(one), to_main(one["snapshot-id"]), properties(mine="yes"), requirements=[main_is(metadata)])
    for updates in (
        [properties(**{"dolake.offset.log-a": "9"})],
        [properties(**{"dolake.offset.log-a": "11"})],  # What lies between would never be applied.
        [properties(**{"dolake.offset.log-b": "5"})],
        [properties(**{"dolake.epoch": "1"})],
        [properties(**{"dolake.instance": "other"})],
        [{"action": "remove-properties", "removals": ["dolake.offset.log-a"]}],
        [{"action": "remove-properties", "removals": ["dolake.epoch"]}],
        [properties(**{"dolake.begin.log-a": "3"})],
    ):
        status, kind, words = refusal(rest.try_commit(updates))
        assert (status, kind, "only dolake's writer" in words) == (400, "BadRequestException", True), updates
    assert rest.metadata()["properties"] == {**OWNED, "mine": "yes"}


def test_a_commit_of_dolakes_own_form_goes_on_and_never_back(rest: Rest) -> None:
    metadata = claimed(rest, own(rest), {**OWNED, "dolake.offset.log-a": "20", "dolake.offset.log-b": "1"})
    ahead = {**OWNED, "dolake.offset.log-a": "20", "dolake.offset.log-b": "1"}
    for values in (
        {**ahead, "dolake.offset.log-a": "19"},
        {**ahead, "dolake.epoch": "1"},
        {**ahead, "dolake.offset.log-a": "30", "dolake.instance": "other"},
        {**ahead, "dolake.offset.log-a": "many"},
    ):
        assert refusal(try_claim(rest, metadata, values))[0] == 400, values
    metadata = claimed(rest, metadata, {**ahead, "dolake.epoch": "3", "dolake.instance": "other"})
    back = {**ahead, "dolake.offset.log-a": "5", "dolake.epoch": "4", "dolake.instance": "third"}
    assert refusal(try_claim(rest, metadata, back))[0] == 400
    claimed(rest, metadata, back, dolake_rewind="asked for")
    assert rest.metadata()["properties"]["dolake.offset.log-a"] == "5"


def test_a_table_of_dolake_is_neither_dropped_nor_renamed_nor_overwritten_here(rest: Rest) -> None:
    own(rest)
    location = rest.get("namespaces/shop/tables/orders")["metadata-location"]
    here = {"namespace": ["shop"], "name": "orders"}
    refused = [
        rest.ask("DELETE", "namespaces/shop/tables/orders?purgeRequested=true"),
        rest.ask("POST", "tables/rename", {"source": here, "destination": {**here, "name": "other"}}),
        rest.ask("POST", "namespaces/shop/register", {"name": "orders", "metadata-location": location, "overwrite": True}),
    ]
    for answer in refused:
        status, kind, words = refusal(answer)
        assert (status, kind, "written by dolake" in words) == (400, "BadRequestException", True)
    assert rest.metadata()["properties"] == OWNED


def test_nobody_makes_a_table_that_claims_to_hold_what_dolake_never_wrote(rest: Rest) -> None:
    rest.ask("POST", "namespaces", {"namespace": ["shop"]})
    for name in OWNED:
        sent = {"name": "orders", "schema": SCHEMA, "properties": {name: "7"}}
        assert refusal(rest.ask("POST", "namespaces/shop/tables", sent))[0] == 400
    create = [{"action": "add-schema", "schema": SCHEMA}, {"action": "set-current-schema", "schema-id": -1}, properties(**OWNED)]
    assert refusal(rest.try_commit(create, [{"type": "assert-create"}]))[0] == 400
    assert rest.ask("HEAD", "namespaces/shop/tables/orders").status_code == 404
