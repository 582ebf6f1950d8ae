"""Settings: where they come from, what they owe each other, and that every mistake is told at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dolake.config import Settings, load_settings
from dolake.errors import ConfigurationError, Mistake
from dolake.iceberg.lake import commit_policy
from dolake.iceberg.plan import CommitPolicy
from dolake.model import TableName
from tests.harness.access import hash_of, new_token, section

MIB = 1024 * 1024


def load(data: Path | None, toml: str = "", environment: dict[str, str] | None = None, flags: dict[str, object] | None = None) -> Settings:
    """Settings with `toml` as DIR/dolake.toml."""
    given = dict(flags or {})
    config = None
    if data is not None:
        data.mkdir(exist_ok=True)
        given["data"] = str(data)
    if toml and data is not None:
        (data / "dolake.toml").write_text(toml, encoding="utf-8")
        config = str(data / "dolake.toml")
    return load_settings(given, config=config, environment=environment or {})


def mistakes(*arguments: object, **more: object) -> list[Mistake]:
    with pytest.raises(ConfigurationError) as refusal:
        load(*arguments, **more)  # type: ignore[arg-type]
    return refusal.value.mistakes


def test_a_data_directory_is_all_that_is_needed(tmp_path: Path) -> None:
    settings = load_settings({"data": str(tmp_path / "lake")}, environment={})
    assert settings.log.directories == (str(tmp_path / "lake" / "log"),)
    assert settings.warehouse.uri == f"file://{tmp_path}/lake/warehouse"
    assert (settings.host, settings.port, settings.http_port) == ("127.0.0.1", 8765, 8181)
    assert (settings.flush.age_s, settings.flush.bytes, settings.log.segment_bytes) == (5.0, 128 * MIB, 64 * MIB)
    assert (settings.limits.payload_bytes, settings.limits.event_bytes, settings.limits.batch_events) == (16 * MIB, MIB, 10_000)
    assert (settings.commit.snapshots_kept, settings.commit.tags_kept_days, settings.log.backlog_bytes) == (100, 7, None)
    assert os.listdir(tmp_path) == []


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    toml = "port = 1\nhttp_port = 11\n[flush]\nage_s = 1\nrows = 7\n[commit]\nsnapshots_kept = 3\n"
    environment = {"DOLAKE_PORT": "2", "DOLAKE_FLUSH_AGE_S": "2.5"}
    settings = load(tmp_path, toml, environment, {"port": 3})
    assert (settings.port, settings.http_port, settings.flush.age_s, settings.flush.rows) == (3, 11, 2.5, 7)
    assert (settings.commit.snapshots_kept, settings.commit.tags_kept_days) == (3, 7)


def test_what_is_set_of_history_is_what_commits_leave(tmp_path: Path) -> None:
    assert commit_policy(load(tmp_path, "")) == CommitPolicy()
    settings = load(tmp_path, "[commit]\nsnapshots_kept = 3\nsnapshots_age_s = 60\n", {"DOLAKE_COMMIT_TAGS_KEPT_DAYS": "2"})
    assert commit_policy(settings) == CommitPolicy(snapshots_kept=3, tags_kept_days=2, snapshots_age_s_max=60)


def test_a_file_is_found_in_the_data_directory_or_else_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lake").mkdir()
    (tmp_path / "dolake.toml").write_text('data = "lake"\nport = 5\n')
    here = load_settings({}, environment={})
    assert (here.data, here.port) == (str(tmp_path / "lake"), 5)
    (tmp_path / "lake" / "dolake.toml").write_text("port = 6\n")
    assert load_settings({"data": "lake"}, environment={}).port == 6
    assert load_settings({}, environment={"DOLAKE_DATA": "lake"}).port == 6
    assert load_settings({"data": "lake"}, config="dolake.toml", environment={}).port == 5
    assert load_settings({"data": "lake"}, environment={"DOLAKE_CONFIG": "dolake.toml"}).port == 5


def test_relative_paths_in_a_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc" / "dolake.toml").write_text('data = "lake"\n[log]\ndirectories = ["one", "/two"]\n')
    settings = load_settings({}, config="etc/dolake.toml", environment={})
    assert settings.data == str(tmp_path / "etc" / "lake")
    assert settings.log.directories == (str(tmp_path / "etc" / "one"), "/two")
    settings = load_settings({"data": "x"}, config="etc/dolake.toml", environment={"DOLAKE_LOG_DIRECTORIES": "a:b"})
    assert settings.data == str(tmp_path / "x")
    assert settings.log.directories == (str(tmp_path / "a"), str(tmp_path / "b"))


def test_sizes_may_carry_a_unit(tmp_path: Path) -> None:
    settings = load(tmp_path, '[flush]\nbytes = "32 MiB"\nmemory_bytes = "1GB"\n', {"DOLAKE_LOG_SEGMENT_BYTES": "1MiB"})
    assert (settings.flush.bytes, settings.flush.memory_bytes, settings.log.segment_bytes) == (32 * MIB, 10**9, MIB)


def test_keys_of_aws_are_used_for_a_bucket_and_only_below_our_own(tmp_path: Path) -> None:
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t", "AWS_DEFAULT_REGION": "eu"}
    s3 = load(tmp_path, '[warehouse]\nuri = "s3://lake/x/"\n', environment).s3
    assert (s3.access_key, s3.secret_key, s3.session_token, s3.region) == ("a", "s", "t", "eu")
    own = {**environment, "DOLAKE_S3_ACCESS_KEY": "A", "DOLAKE_S3_SECRET_KEY": "S"}
    s3 = load(tmp_path, '[warehouse]\nuri = "s3://lake/x"\n', own).s3
    assert (s3.access_key, s3.secret_key, s3.session_token) == ("A", "S", None), "keys of two owners must never be mixed"
    assert load(tmp_path, "port = 1", environment).s3.access_key is None


def test_settings_survive_the_way_to_a_child(tmp_path: Path) -> None:
    toml = '[s3]\naccess_key = "a"\nsecret_key = "s"\n[tables."public.*"]\npartition_by = ["day"]\nflush = {age_s = 1.5}\n'
    settings = load(tmp_path / "ein Ördner", toml)
    assert Settings.from_json(settings.to_json()) == settings
    assert "secret_key" not in repr(settings)


@pytest.mark.parametrize(
    ("table", "age_s", "rows", "partition_by"),
    [
        ("public.orders", 1.0, 10, ("region",)),
        ("public.orders_old", 2.0, 20, ("day",)),
        ("public.items", 3.0, 20, ("day",)),
        ("audit.items", 4.0, 40, None),
        ("default.plain", 5.0, 50, ()),
        ("other.plain", 4.0, 40, None),
    ],
)
def test_each_setting_of_a_table_comes_from_the_most_specific_pattern_that_sets_it(
    tmp_path: Path, table: str, age_s: float, rows: int, partition_by: tuple[str, ...] | None
) -> None:
    toml = """
    [tables."*"]
    flush = {age_s = 4, rows = 40}
    [tables."public.*"]
    flush = {age_s = 3, rows = 20}
    partition_by = ["day"]
    [tables."public.orders"]
    flush = {age_s = 1, rows = 10}
    partition_by = ["region"]
    [tables."public.orders*"]
    flush = {age_s = 2}
    [tables.plain]
    flush = {age_s = 5, rows = 50}
    partition_by = []
    """
    chosen = load(tmp_path, toml).settings_for(TableName.parse(table))
    assert (chosen.mode, chosen.flush_age_s, chosen.flush_rows, chosen.partition_by) == ("mirror", age_s, rows, partition_by)
    assert chosen.flush_bytes == 128 * MIB


def test_the_order_of_patterns_in_the_file_does_not_matter(tmp_path: Path) -> None:
    first, second = '[tables."a.x*y"]\nflush = {rows = 1}\n', '[tables."a.x*z*"]\nflush = {rows = 2}\n'
    one, other = load(tmp_path, first + second), load(tmp_path, second + first)
    assert one.settings_for("a.xzy") == other.settings_for("a.xzy")


def test_a_ttl_is_that_of_the_most_specific_pattern_whole_and_may_be_taken_away(tmp_path: Path) -> None:
    text = (
        '[tables."*.*"]\nttl = {column = "at", age = "30 d"}\n[tables."a.*"]\nttl = {column = "seen", age = "90 min"}\n'
        '[tables."a.kept"]\nttl = {column = ""}\n[tables."b.*"]\nttl = {column = "on", age = 5}\n'
    )
    settings = load(tmp_path, text)
    found = {name: settings.settings_for(name) for name in ("z.t", "a.t", "a.t__changes", "a.kept", "b.t")}
    assert {name: (one.ttl_column, one.ttl_age_s) for name, one in found.items()} == {
        "z.t": ("at", 30 * 86_400), "a.t": ("seen", 5400), "a.t__changes": ("seen", 5400), "a.kept": ("", 0), "b.t": ("on", 5),
    }  # fmt: skip


def test_columns_left_out_and_masked_add_up_over_all_patterns(tmp_path: Path) -> None:
    toml = """
    mask_key = "sixteen letters!"
    [tables."*"]
    drop = ["ssn"]
    mask = ["email", "_cdc_row_id"]
    [tables."public.*"]
    mask = ["phone", "email"]
    [tables."public.people"]
    drop = ["note"]
    """
    settings = load(tmp_path, toml)
    people, other = settings.settings_for("public.people"), settings.settings_for("a.b")
    assert (people.drop, people.mask) == (("note", "ssn"), ("phone", "email", "_cdc_row_id"))
    assert (other.drop, other.mask) == (("ssn",), ("email", "_cdc_row_id"))
    assert settings.mask_key == "sixteen letters!"
    assert "sixteen" not in repr(settings)


HASH = f'hash = "{hash_of(new_token())}"'
TOKEN = f"[tokens.a]\n{HASH}\n"

# toml, environment, flags → the key that is named, the value shown, a part of the rule
WRONG: dict[str, tuple[str, dict[str, str], dict[str, object], str, str, str]] = {
    "port too high": ("port = 70000", {}, {}, "port", "70000", "at most 65535"),
    "port negative": ("", {}, {"port": -1}, "port", "-1", "at least 0"),
    "port not a number": ("", {"DOLAKE_PORT": "http"}, {}, "port", "http", "whole number"),
    "port a truth value": ("port = true", {}, {}, "port", "True", "number"),
    "ports equal": ("port = 9000\nhttp_port = 9000", {}, {}, "http_port", "9000", "differ from port"),
    "host not loopback": ('host = "0.0.0.0"', {}, {}, "host", "0.0.0.0", "no tokens"),
    "host a name": ("", {"DOLAKE_HOST": "example.org"}, {}, "host", "example.org", "loopback"),
    "unknown key": ("prot = 1", {}, {}, "prot", "1", "did you mean port"),
    "unknown section key": ("[flush]\nage = 1", {}, {}, "flush.age", "1", "no setting"),
    "unknown variable": ("", {"DOLAKE_FLUSH_AGE": "1"}, {}, "DOLAKE_FLUSH_AGE", "1", "did you mean DOLAKE_FLUSH_AGE_S"),
    "patterns in the environment": ("", {"DOLAKE_TABLES_X_MODE": "m"}, {}, "DOLAKE_TABLES_X_MODE", "m", "dolake.toml"),
    "section a number": ("flush = 3", {}, {}, "flush", "3", "section"),
    "age zero": ("[flush]\nage_s = 0", {}, {}, "flush.age_s", "0", "more than 0"),
    "age not finite": ("[flush]\nage_s = inf", {}, {}, "flush.age_s", "inf", "at most 86400"),
    "age text": ("", {"DOLAKE_FLUSH_AGE_S": "soon"}, {}, "flush.age_s", "soon", "must be a number"),
    "rows zero": ("[flush]\nrows = 0", {}, {}, "flush.rows", "0", "at least 1"),
    "size with an odd unit": ('[flush]\nbytes = "3 parsecs"', {}, {}, "flush.bytes", "3 parsecs", "64 MiB"),
    "memory below a flush": ("[flush]\nmemory_bytes = 1000", {}, {}, "flush.memory_bytes", "1000", "at least flush.bytes"),
    "segment too small": ("[log]\nsegment_bytes = 100", {}, {}, "log.segment_bytes", "100", "at least 4096"),
    "backlog below a segment": ('[log]\nbacklog_bytes = "32 MiB"', {}, {}, "log.backlog_bytes", "33554432", "log.segment_bytes"),
    "event above payload": ('[limits]\nevent_bytes = "17 MiB"', {}, {}, "limits.event_bytes", str(17 * MIB), "limits.payload_bytes"),
    "directories equal": ('[log]\ndirectories = ["a", "b", "a"]', {}, {}, "log.directories", "/a", "must differ"),
    "directory in another": ('[log]\ndirectories = ["a", "a/b"]', {}, {}, "log.directories", "/a/b", "nor lie inside"),
    "log is the data directory": ('[log]\ndirectories = ["."]', {}, {}, "log.directories", "", "must differ from data"),
    "log contains the data directory": ('[log]\ndirectories = [".."]', {}, {}, "log.directories", "", "must not contain data"),
    "warehouse in the log": ('[warehouse]\nuri = "file://{here}/log/x"', {}, {}, "warehouse.uri", "/log/x", "nor lie inside"),
    "directory not text": ("[log]\ndirectories = [1]", {}, {}, "log.directories.0", "1", "must be text"),
    "a file in the way": ('[log]\ndirectories = ["dolake.toml/x"]', {}, {}, "log.directories", "dolake.toml/x", "not a directory"),
    "warehouse without scheme": ('[warehouse]\nuri = "/tmp/x"', {}, {}, "warehouse.uri", "/tmp/x", "file:///path or s3://"),
    "warehouse of another scheme": ('[warehouse]\nuri = "gs://b/x"', {}, {}, "warehouse.uri", "gs://b/x", "file:///path or s3://"),
    "warehouse relative": ('[warehouse]\nuri = "file://x"', {}, {}, "warehouse.uri", "file://x", "absolute"),
    "warehouse climbs": ('[warehouse]\nuri = "s3://lake/../x"', {}, {}, "warehouse.uri", "s3://lake/../x", "`..`"),
    "bucket name": ('[warehouse]\nuri = "s3://UPPER/x"', {}, {}, "warehouse.uri", "s3://UPPER/x", "bucket"),
    "endpoint without scheme": ('[s3]\nendpoint = "localhost:9000"', {}, {}, "s3.endpoint", "localhost:9000", "http://"),
    "key without secret": ('[s3]\naccess_key = "k"', {}, {}, "s3.secret_key", "nothing", "together with s3.access_key"),
    "a changelog beside": ('[tables."a.b__changes"]\nmode = "changelog"', {}, {}, "tables.a.b__changes", "a.b__changes", "settings of a.b"),
    "truncate unknown": ('[tables."a.*"]\ntruncate = "all"', {}, {}, "tables.a.*.truncate", "all", "source"),
    "mode unknown": ('[tables."a.*"]\nmode = "log"', {}, {}, "tables.a.*.mode", "log", "changelog"),
    "pattern with a slash": ('[tables."../x"]\npartition_by = ["a"]', {}, {}, "tables.../x", "../x", "table pattern"),
    "pattern twice": ('[tables."x"]\n[tables."default.x"]', {}, {}, "tables.default.x", "default.x", "beside tables.x"),
    "pattern's unknown key": ('[tables."x"]\npartition = "a"', {}, {}, "tables.x.partition", "a", "partition_by"),
    "pattern's flush above memory": ('[tables."x"]\nflush = {bytes = "1 GiB"}', {}, {}, "tables.x.flush.bytes", str(1024 * MIB), "memory"),
    "partition column twice": ('[tables."x"]\npartition_by = ["a", "a"]', {}, {}, "tables.x.partition_by", "['a', 'a']", "once"),
    "partition column empty": ('[tables."x"]\npartition_by = [""]', {}, {}, "tables.x.partition_by.0", "", "empty"),
    "mask without a key": ('[tables."x"]\nmask = ["email"]', {}, {}, "mask_key", "nothing", "required by tables.x.mask"),
    "mask key too short": ("", {"DOLAKE_MASK_KEY": "short"}, {}, "mask_key", "a secret, not shown", "at least 16 characters"),
    "a column of dolake's dropped": ('[tables."x"]\ndrop = ["_CDC_lsn"]', {}, {}, "tables.x.drop", "_CDC_lsn", "columns of the source"),
    "row ids dropped": ('[tables."x"]\ndrop = ["_cdc_row_id"]', {}, {}, "tables.x.drop", "_cdc_row_id", "only _cdc_row_id may be masked"),
    "ttl's age of no unit": ('[tables."x"]\nttl = {column = "a", age = "3 moons"}', {}, {}, "tables.x.ttl.age", "3 moons", "min, h or d"),
    "ttl's age too short": ('[tables."x"]\nttl = {column = "at", age = "0.5 s"}', {}, {}, "tables.x.ttl.age", "0.5 s", "at least 1"),
    "ttl's age negative": ('[tables."x"]\nttl = {column = "at", age = "-3 d"}', {}, {}, "tables.x.ttl.age", "-3 d", "s, min, h or d"),
    "ttl without age": ('[tables."x"]\nttl = {column = "at"}', {}, {}, "tables.x.ttl.age", "nothing", "together with tables.x.ttl.column"),
    "ttl without column": ('[tables."x"]\nttl = {age = "3 d"}', {}, {}, "tables.x.ttl.column", "nothing", "together with tables.x.ttl.age"),
    "ttl by what is dropped": (
        '[tables."x"]\ndrop = ["at"]\nttl = {column = "at", age = "3 d"}', {}, {}, "tables.x.ttl.column", "at", "tables.x.drop",
    ),
    "ttl's interval": ("[maintenance]\nttl_interval_s = 0", {}, {}, "maintenance.ttl_interval_s", "0", "more than 0"),
    "log level unknown": ('log_level = "loud"', {}, {}, "log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
    "log format unknown": ("", {"DOLAKE_LOG_FORMAT": "xml"}, {}, "log_format", "xml", "'auto', 'console' or 'json'"),
    "namespace with a dot": ('[sources.x]\nnamespace = "a.b"', {}, {}, "sources.x.namespace", "a.b", "letters, digits and `_`"),
    "namespace with two stars": ('[sources.x]\nnamespace = "*_*"', {}, {}, "sources.x.namespace", "*_*", "at most one `*`"),
    "namespace of dolake's": ('[sources.x]\nnamespace = "dolake"', {}, {}, "sources.x.namespace", "dolake", "not `dolake`"),
    "source's unknown key": ('[sources."x"]\nnamespaces = "a"', {}, {}, "sources.x.namespaces", "a", "did you mean sources.x.namespace"),
    "priority of no such name": ('[sources.x]\npriority = "urgent"', {}, {}, "sources.x.priority", "urgent", "'high', 'normal' or 'low'"),
    "more columns than any table": ("[limits]\ncolumns = 2001", {}, {}, "limits.columns", "2001", "at most 2000"),
    "no messages at all": ("[limits]\nmessages_per_s = 0", {}, {}, "limits.messages_per_s", "0", "at least 1"),
    "source pattern empty": ('[sources.""]\nnamespace = "a"', {}, {}, "sources.", "", "1 to 256 characters"),
    "sources in the environment": ("", {"DOLAKE_SOURCES_X": "m"}, {}, "DOLAKE_SOURCES_X", "m", "dolake.toml"),
    "hash of another form": ('[tokens.a]\nhash = "md5:1"\nread = true', {}, {}, "tokens.a.hash", "not shown", "64 hex digits"),
    "token without hash": ("[tokens.a]\nread = true", {}, {}, "tokens.a.hash", "nothing", "required"),
    "token of a number": ("[tokens]\na = 1", {}, {}, "tokens.a", "1", "section"),
    "tokens a number": ("tokens = 1", {}, {}, "tokens", "1", "section"),
    "token's odd name": (f'[tokens."a b"]\n{HASH}\nread = true', {}, {}, "tokens.a b", "a b", "letters, digits"),
    "token's unknown key": (f"{TOKEN}read = true\nsource = []", {}, {}, "tokens.a.source", "[]", "did you mean tokens.a.sources"),
    "token that allows nothing": (TOKEN, {}, {}, "tokens.a", "nothing", "allow something"),
    "sources without tables": (f'{TOKEN}sources = ["x"]', {}, {}, "tokens.a.tables", "nothing", "together with tokens.a.sources"),
    "tables without sources": (f'{TOKEN}tables = ["x"]', {}, {}, "tokens.a.sources", "nothing", "together with tokens.a.tables"),
    "catalog without read": (f"{TOKEN}catalog = true", {}, {}, "tokens.a.read", "false", "must be true with tokens.a.catalog"),
    "keys vended without any": ('[catalog]\nvend = "credentials"', {}, {}, "catalog.vend", "credentials", "without keys to give"),
    "half of the vended keys": ('[catalog]\naccess_key = "a"', {}, {}, "catalog.secret_key", "nothing", "together with catalog.access_key"),
    "vended address": ('[catalog]\nendpoint = "minio"', {}, {}, "catalog.endpoint", "minio", "must be http://host:port"),
    "token's source pattern empty": (f'{TOKEN}sources = [""]\ntables = ["x"]', {}, {}, "tokens.a.sources", "", "1 to 256"),
    "table pattern wrong": (f'{TOKEN}sources = ["x"]\ntables = ["a.b.c"]', {}, {}, "tokens.a.tables", "a.b.c", "table pattern"),
    "sources a text": (f'{TOKEN}sources = "x"\ntables = ["x"]', {}, {}, "tokens.a.sources", "x", "must be a list"),
    "read no truth": (f'{TOKEN}read = "yes"', {}, {}, "tokens.a.read", "yes", "true or false"),
    "expires without offset": (f"{TOKEN}read = true\nexpires = 2027-01-31T00:00:00", {}, {}, "tokens.a.expires", "2027", "offset"),
    "expires a day": (f"{TOKEN}read = true\nexpires = 2027-01-31", {}, {}, "tokens.a.expires", "2027", "offset"),
    "expires soon": (f'{TOKEN}read = true\nexpires = "soon"', {}, {}, "tokens.a.expires", "soon", "offset"),
    "one token by two names": (f"{TOKEN}read = true\n[tokens.b]\n{HASH}\nread = true", {}, {}, "tokens.b.hash", "the same", "tokens.a"),
    "tokens in the environment": ("", {"DOLAKE_TOKENS_A_HASH": "m"}, {}, "DOLAKE_TOKENS_A_HASH", "m", "dolake.toml"),
    "file of tokens absent": ('[auth]\ntokens_file = "none.toml"', {}, {}, "auth.tokens_file", "/lake/none.toml", "can be read"),
    "file of tokens empty": ("", {"DOLAKE_AUTH_TOKENS_FILE": "/dev/null"}, {}, "auth.tokens_file", "/dev/null", "must hold a token"),
    "snapshots of no age": ("", {"DOLAKE_COMMIT_SNAPSHOTS_AGE_S": "-1"}, {}, "commit.snapshots_age_s", "-1", "at least 0"),
    "snapshots none": ("", {"DOLAKE_COMMIT_SNAPSHOTS_KEPT": "0"}, {}, "commit.snapshots_kept", "0", "at least 1"),
}  # fmt: skip


@pytest.mark.acceptance("AT-100")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_named_with_its_value_and_rule_and_nothing_is_created(tmp_path: Path, case: str) -> None:
    toml, environment, flags, field, value, rule = WRONG[case]
    found = mistakes(tmp_path / "lake", toml.replace("{here}", str(tmp_path / "lake")), environment, flags)
    assert [mistake.field for mistake in found] == [field]
    assert value in found[0].value
    assert rule in found[0].rule
    assert "\n" not in str(found[0])
    assert set(os.listdir(tmp_path / "lake")) <= {"dolake.toml"}
    assert os.listdir(tmp_path) == ["lake"]


def test_a_directory_that_cannot_be_written_to_matters_to_those_who_write() -> None:
    flags = {"data": "/proc/sys/lake"}  # Not even root writes there.
    with pytest.raises(ConfigurationError, match="data: must be writable"):
        load_settings(flags, environment={})
    assert load_settings(flags, environment={}, writing=False).data == flags["data"]


def test_every_mistake_is_told_at_once_with_where_it_came_from(tmp_path: Path) -> None:
    toml = 'hots = "x"\n[flush]\nage_s = -1\n[log]\nbacklog_bytes = 5\n[tables."a b"]\nmode = "all"\n'
    found = mistakes(tmp_path, toml, {"DOLAKE_HTTP_PORT": "x", "DOLAKE_WHAT": "y"}, {"host": "10.0.0.1"})
    fields = {mistake.field for mistake in found}
    assert fields == {"hots", "flush.age_s", "log.backlog_bytes", "tables.a b.mode", "tables.a b", "http_port", "DOLAKE_WHAT", "host"}
    told = {mistake.field: mistake.value for mistake in found}
    assert told["http_port"] == "x from DOLAKE_HTTP_PORT"
    assert told["host"] == "10.0.0.1 from --host"
    assert told["flush.age_s"].endswith("dolake.toml")


def test_a_rule_about_a_value_that_is_wrong_already_is_not_told_on_top(tmp_path: Path) -> None:
    found = mistakes(tmp_path, '[log]\nsegment_bytes = "much"\nbacklog_bytes = "32 MiB"\n')
    assert [mistake.field for mistake in found] == ["log.segment_bytes"]


@pytest.mark.parametrize("key", ["secret_key", "session_token"])
def test_a_secret_is_never_shown(tmp_path: Path, key: str) -> None:
    found = mistakes(tmp_path, f"[s3]\n{key} = 12345678\n")
    assert "12345678" not in " ".join(str(mistake) for mistake in found)


def test_a_value_with_control_characters_stays_on_one_line(tmp_path: Path) -> None:
    found = mistakes(tmp_path, environment={"DOLAKE_HOST": "a\nb\x1b[31m", "DOLAKE_X\nY": "1"})
    assert all("\n" not in str(mistake) and "\x1b" not in str(mistake) for mistake in found)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("content", "rule"), [(b"port = ", "must be TOML"), (b"\xff\xfe", "must be TOML"), (None, "can be read")], ids=["cut", "bytes", "none"]
)
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, content: bytes | None, rule: str) -> None:
    if content is not None:
        (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings({"data": str(tmp_path)}, config=str(tmp_path / "x.toml"), environment={})
    assert [mistake.field for mistake in refusal.value.mistakes] == ["config"]
    assert rule in refusal.value.mistakes[0].rule


def test_without_a_data_directory_the_rest_is_checked_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [mistake.field for mistake in mistakes(None, environment={"DOLAKE_PORT": "-1"})] == ["data", "port"]


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize(
    "toml",
    ["[tokens.a]\nhash = '{token}'\nread = true", "[tokens.a]\ntoken = '{token}'", "[tokens.{token}]\nread = true", "host = '{token}'"],
    ids=["as hash", "as a key", "as name", "as host"],
)
def test_a_token_given_in_a_wrong_place_is_not_shown(tmp_path: Path, toml: str) -> None:
    token = new_token()
    found = mistakes(tmp_path, toml.replace("{token}", token), {"DOLAKE_PORT": token, "DOLAKE_NONE": token})
    assert len(found) >= 3
    assert token not in " ".join(map(str, found))


def test_tokens_come_from_the_configuration_and_from_a_file_of_their_own(tmp_path: Path) -> None:
    first, second = new_token(), new_token()
    (tmp_path / "tokens.toml").write_text(section("second", second, sources=["s*"], tables=["*"]) + "expires = 2027-01-31T01:00:00+01:00\n")
    toml = '[auth]\ntokens_file = "tokens.toml"\n' + section("first", first, read=True)
    settings = load(tmp_path, toml, flags={"host": "0.0.0.0"})
    assert set(settings.tokens) == {"first", "second"}
    assert (settings.tokens["first"].hash, settings.tokens["first"].expires_ms) == (hash_of(first), None)
    assert (settings.tokens["second"].sources, settings.tokens["second"].expires_ms) == (("s*",), 1_801_353_600_000)
    assert Settings.from_json(settings.to_json()) == settings
    assert hash_of(first) not in repr(settings)


def test_a_file_of_tokens_holds_tokens_and_none_that_is_elsewhere_too(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text("port = 1\n" + section("a", new_token(), read=True) + section("b", "x", read=True, flags=[]))
    found = mistakes(tmp_path, '[auth]\ntokens_file = "tokens.toml"\n' + section("a", new_token(), read=True))
    assert [mistake.field for mistake in found] == ["port", "tokens.a", "tokens.b.flags"]
    assert all(mistake.value.endswith("tokens.toml") for mistake in found)


def test_who_only_reads_needs_no_file_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "dolake.toml").write_text('host = "0.0.0.0"\n[auth]\ntokens_file = "/nonexistent"\n')
    settings = load_settings({"data": str(tmp_path)}, environment={}, writing=False)
    assert (settings.tokens, settings.auth.tokens_file) == ({}, "/nonexistent")
    with pytest.raises(ConfigurationError, match=r"auth\.tokens_file: must be a file that can be read"):
        load_settings({"data": str(tmp_path)}, environment={}, writing=False, with_tokens=True)


@pytest.mark.acceptance("AT-100")
def test_the_command_line_exits_with_2_and_a_line_for_each_mistake(tmp_path: Path) -> None:
    arguments = ["serve", "--data", str(tmp_path / "lake"), "--port", "70000", "--host", "0.0.0.0"]
    done = subprocess.run([sys.executable, "-m", "dolake", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["port", "host"]
    assert "70000" in lines[0]
    assert "at most 65535" in lines[0]
    assert os.listdir(tmp_path) == []


STARTS = ["log level unknown", "log format unknown", "directory in another", "warehouse climbs", "bucket name", "key without secret"]


@pytest.mark.acceptance("AT-100")
@pytest.mark.parametrize("case", STARTS)
def test_a_daemon_that_is_told_nonsense_says_one_line_and_leaves_nothing_behind(tmp_path: Path, case: str) -> None:
    toml, environment, _, field, value, rule = WRONG[case]
    lake = tmp_path / "lake"
    lake.mkdir()
    (lake / "dolake.toml").write_text(toml.replace("{here}", str(lake)), encoding="utf-8")
    kept = {name: text for name, text in os.environ.items() if not name.startswith("DOLAKE_")}
    done = subprocess.run(
        [sys.executable, "-m", "dolake", "serve", "--data", str(lake), "--port", "0", "--http-port", "0"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env={**kept, **environment},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"dolake: {field}: ")
    assert rule in line
    assert value in line
    assert (os.listdir(lake), os.listdir(tmp_path)) == (["dolake.toml"], ["lake"])


@pytest.mark.acceptance("AT-100")
@pytest.mark.parametrize(
    ("partition_by", "field", "value", "rule"),
    [
        (["a", "days(t)"], ".1", "days(t)", "there is no days"),
        (["bucket(id)"], ".0", "bucket(id)", "as in bucket(16, id)"),
        (["bucket(id, 16)"], ".0", "bucket(id, 16)", "must begin with a number"),
        (["bucket(0, id)"], ".0", "bucket(0, id)", "1..2147483647"),
        (["truncate(2147483648, id)"], ".0", "truncate(2147483648, id)", "1..2147483647"),
        (["day()"], ".0", "day()", "must be a column, year(column)"),
        (["day(a, b)"], ".0", "day(a, b)", "quoted"),
        (["a..b"], ".0", "a..b", "must be a column"),
        (["month(t)", "day( t )"], "", "month(t)", "must name one of month(t) and day(t)"),
        (["day(t)", 'day( "t" )'], "", "day(t)", "day(t) is there twice"),
        ([3], ".0", "3", "must be text"),
    ],
)
def test_a_wrong_partition_is_named_with_its_value_and_rule(
    tmp_path: Path, partition_by: list[object], field: str, value: str, rule: str
) -> None:
    (mistake,) = mistakes(tmp_path, f"[tables.x]\npartition_by = {json.dumps(partition_by)}", {}, {})
    assert mistake.field == f"tables.x.partition_by{field}"
    assert value in mistake.value
    assert rule in mistake.rule


def test_partitions_are_taken_as_they_are_written(tmp_path: Path) -> None:
    written = ("region", "day(created_at)", "bucket(16, payload.id)", 'truncate(4, "first name")', 'void("a(b)")', "hour(_cdc_timestamp)")
    toml = f"[tables.x]\npartition_by = {json.dumps(written)}"
    assert load(tmp_path, toml).settings_for("x").partition_by == written


@pytest.mark.parametrize("toml", ["x = " + "[" * 5000, "x = " + "1" * 5000, 'x = "\\ud800"'])
def test_a_file_that_pythons_limits_refuse_is_named_like_any_other(tmp_path: Path, toml: str) -> None:
    """Nesting, and digits: neither is an error of TOML's (found by fuzzing)."""
    (mistake,) = mistakes(tmp_path, toml, {}, {})
    assert (mistake.field, mistake.rule[:12]) == ("config", "must be TOML")
