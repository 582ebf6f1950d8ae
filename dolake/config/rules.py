"""What settings owe each other: directories apart, limits that fit into one another, an address nobody else can reach.

`breaches` yields a mistake for each broken rule with the keys it concerns, so that a rule about a value that is already
reported as wrong is not reported on top. It looks at the file system and changes nothing.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dolake.config.access import TOKEN_NAME
from dolake.config.catalog import PROPERTIES_NEEDED
from dolake.config.settings import Settings
from dolake.errors import ConfigurationError, Mistake
from dolake.model import RESERVED_SUFFIX, normal_pattern

SOURCE_NAME_MAX = 256


@dataclass(frozen=True)
class Breach:
    """A broken rule. `keys` are all the settings it speaks of; the mistake names the one to change."""

    keys: Sequence[str]
    mistake: Mistake


def breaches(settings: Settings, *, writing: bool, tokens_known: bool = True) -> Iterator[Breach]:
    """`writing`: whether the command at hand puts anything into the directories, so that they must be writable.

    `tokens_known`: whether the file of tokens, if there is one, was read.
    """
    yield from _network(settings, tokens_known)
    yield from _sizes(settings)
    yield from _credentials(settings)
    yield from _catalog(settings)
    yield from _compaction(settings)
    yield from _tls(settings)
    yield from _tokens(settings, tokens_known)
    yield from _patterns(settings)
    yield from _ttls(settings)
    yield from _sources(settings)
    yield from _places(settings, writing)
    yield from _apart(settings)


def require_reloadable(before: Settings, after: Settings) -> None:
    """What a reload may not do, as it would let in others than before. Raises ConfigurationError."""
    found: list[Mistake] = []
    if before.tokens and not after.tokens:
        found.append(Mistake("tokens", "nothing", "must not be empty after a reload: anybody could come in; to have none, start again"))
    if (before.tls.certificate is None) != (after.tls.certificate is None):
        rule = "must not be set or taken away by a reload: start again to begin or end TLS"
        found.append(Mistake("tls.certificate", str(after.tls.certificate or "nothing"), rule))
    found += [breach.mistake for breach in _network(after, tokens_known=True)]
    if found:
        raise ConfigurationError(found)


def _breach(field: str, value: object, rule: str, *others: str) -> Breach:
    return Breach((field, *others), Mistake(field, str(value), rule))


def _network(settings: Settings, tokens_known: bool) -> Iterator[Breach]:
    if tokens_known and not settings.tokens and not is_loopback(settings.host):
        rule = "must be a loopback address such as 127.0.0.1: there are no tokens to tell who connects; `dolake token new` makes one"
        yield _breach("host", settings.host, rule, "tokens", "auth.tokens_file")
    if settings.port and settings.port == settings.http_port:
        yield _breach("http_port", settings.http_port, "must differ from port", "port")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _sizes(settings: Settings) -> Iterator[Breach]:
    backlog, limits, flush = settings.log.backlog_bytes, settings.limits, settings.flush
    if backlog is not None and backlog < settings.log.segment_bytes:
        rule = f"must be at least log.segment_bytes ({settings.log.segment_bytes}): a log is trimmed by whole segments"
        yield _breach("log.backlog_bytes", backlog, rule, "log.segment_bytes")
    if backlog is not None and backlog < limits.payload_bytes:
        rule = f"must be at least limits.payload_bytes ({limits.payload_bytes}), or the largest message never fits"
        yield _breach("log.backlog_bytes", backlog, rule, "limits.payload_bytes")
    if limits.event_bytes > limits.payload_bytes:
        rule = f"must be at most limits.payload_bytes ({limits.payload_bytes}): an event travels in a message"
        yield _breach("limits.event_bytes", limits.event_bytes, rule, "limits.payload_bytes")
    if flush.bytes > flush.memory_bytes:
        rule = f"must be at least flush.bytes ({flush.bytes}), or no table ever grows to its flush"
        yield _breach("flush.memory_bytes", flush.memory_bytes, rule, "flush.bytes")
    for pattern, table in settings.tables.items():
        if table.flush.bytes is not None and table.flush.bytes > flush.memory_bytes:
            rule = f"must be at most flush.memory_bytes ({flush.memory_bytes})"
            yield _breach(f"tables.{pattern}.flush.bytes", table.flush.bytes, rule, "flush.memory_bytes")


def _credentials(settings: Settings) -> Iterator[Breach]:
    s3 = settings.s3
    if (s3.access_key is None) != (s3.secret_key is None):
        missing, given = ("secret_key", "access_key") if s3.secret_key is None else ("access_key", "secret_key")
        yield _breach(f"s3.{missing}", "nothing", f"must be given together with s3.{given}", f"s3.{given}")
    if s3.credentials_file is not None and s3.access_key is not None:
        rule = "must not be given together with s3.access_key: keys come from one place"
        yield _breach("s3.credentials_file", s3.credentials_file, rule, "s3.access_key")
    catalog = settings.catalog
    if (catalog.access_key is None) != (catalog.secret_key is None):
        missing, given = ("secret_key", "access_key") if catalog.secret_key is None else ("access_key", "secret_key")
        yield _breach(f"catalog.{missing}", "nothing", f"must be given together with catalog.{given}", f"catalog.{given}")
    if catalog.vend == "credentials" and catalog.access_key is None and s3.access_key is None:
        rule = "must not be credentials without keys to give: set catalog.access_key and catalog.secret_key, or those of [s3]"
        yield _breach("catalog.vend", catalog.vend, rule, "catalog.access_key", "s3.access_key")
    masking = next((pattern for pattern, table in settings.tables.items() if table.mask), None)
    if masking is not None and settings.mask_key is None:
        rule = f"is required by tables.{masking}.mask: without a key short values could be guessed from their hashes"
        yield _breach("mask_key", "nothing", rule, f"tables.{masking}.mask")


def _catalog(settings: Settings) -> Iterator[Breach]:
    catalog = settings.catalog
    if catalog.type == "sql":
        if catalog.properties:
            rule = "must not be set where catalog.type is sql: PyIceberg is told of other types only; a database is named by catalog.uri"
            yield _breach("catalog.properties", "something", rule, "catalog.type")
        return
    grouped = next((pattern for pattern, table in settings.tables.items() if table.group), None)
    if grouped is not None:
        rule = f"must not be set where catalog.type is {catalog.type}: only a sql catalog commits several tables in one transaction"
        yield _breach(f"tables.{grouped}.group", settings.tables[grouped].group, rule, "catalog.type")
    if catalog.uri is not None:
        rule = f"must not be set where catalog.type is {catalog.type}: it names the database of a sql catalog; give catalog.properties.uri"
        yield _breach("catalog.uri", "something", rule, "catalog.type")
    for name in PROPERTIES_NEEDED.get(catalog.type, ()):
        if name not in catalog.properties:
            rule = f"is required where catalog.type is {catalog.type}"
            yield _breach(f"catalog.properties.{name}", "nothing", rule, "catalog.type", "catalog.properties")


def _compaction(settings: Settings) -> Iterator[Breach]:
    compaction = settings.compaction
    if compaction.engine == "spark" and compaction.spark_catalog is None:
        rule = "is required where compaction.engine is spark: what Spark calls the catalog that the tables are in"
        yield _breach("compaction.spark_catalog", "nothing", rule, "compaction.engine")
    if compaction.spark_remote is not None and compaction.spark_master is not None:
        rule = "must not be given together with compaction.spark_remote: that server has a master already"
        yield _breach("compaction.spark_master", compaction.spark_master, rule, "compaction.spark_remote")


def _tls(settings: Settings) -> Iterator[Breach]:
    tls = settings.tls
    if (tls.certificate is None) != (tls.key is None):
        missing, given = ("key", "certificate") if tls.key is None else ("certificate", "key")
        yield _breach(f"tls.{missing}", "nothing", f"must be given together with tls.{given}", f"tls.{given}")
    elif tls.client_ca is not None and tls.certificate is None:
        rule = "must be given together with tls.certificate and tls.key: without them nobody speaks TLS"
        yield _breach("tls.client_ca", tls.client_ca, rule, "tls.certificate", "tls.key")


def _tokens(settings: Settings, tokens_known: bool) -> Iterator[Breach]:
    names: dict[str, str] = {}
    for name, token in settings.tokens.items():
        key = f"tokens.{name}"
        if not TOKEN_NAME.fullmatch(name):
            yield _breach(key, name, "must be a name of 1 to 64 letters, digits, `_` and `-`")
        if token.catalog and not token.read:
            yield _breach(f"{key}.read", "false", f"must be true with {key}.catalog: who changes tables has to load them", f"{key}.catalog")
        if bool(token.sources) != bool(token.tables) and (token.sources or not token.read):  # A reader's tables are those that it sees.
            missing, given = ("tables", "sources") if token.sources else ("sources", "tables")
            rule = f"must be given together with {key}.{given}: one without the other sends nothing"
            yield _breach(f"{key}.{missing}", "nothing", rule, f"{key}.{given}")
        elif not (token.sources or token.read or token.admin or token.catalog):
            yield _breach(key, "nothing", "must allow something: sources and tables, read, or admin")
        if token.hash in names:
            yield _breach(f"{key}.hash", "the same", f"must differ from that of tokens.{names[token.hash]}: each token has one name")
        names.setdefault(token.hash, name)
    if tokens_known and settings.auth.tokens_file is not None and not settings.tokens:
        rule = "must hold a token: without any, nobody would be asked for one"
        yield _breach("auth.tokens_file", settings.auth.tokens_file, rule, "tokens")


def _patterns(settings: Settings) -> Iterator[Breach]:
    seen: dict[str, str] = {}
    for pattern in settings.tables:
        try:
            normal = normal_pattern(pattern)
        except ValueError as rule:
            yield Breach((), Mistake(f"tables.{pattern}", pattern, str(rule)))
            continue
        if normal.endswith(RESERVED_SUFFIX):
            rule_text = f"must name the table itself: a changelog beside it has the settings of {normal.removesuffix(RESERVED_SUFFIX)}"
            yield Breach((), Mistake(f"tables.{pattern}", pattern, rule_text))
        if normal in seen:
            rule_text = f"must not be given beside tables.{seen[normal]}: both mean {normal}"
            yield Breach((), Mistake(f"tables.{pattern}", pattern, rule_text))
        seen.setdefault(normal, pattern)


def _ttls(settings: Settings) -> Iterator[Breach]:
    for pattern, table in settings.tables.items():
        key, ttl = f"tables.{pattern}.ttl", table.ttl
        if ttl.column and ttl.age is None:
            yield _breach(f"{key}.age", "nothing", f"must be given together with {key}.column", f"{key}.column")
        elif ttl.age is not None and ttl.column is None:
            yield _breach(f"{key}.column", "nothing", f"must be given together with {key}.age", f"{key}.age")
        for said, columns in (("drop", table.drop), ("mask", table.mask)):
            if ttl.column in columns:
                rule = f"must not be a column that tables.{pattern}.{said} takes its values from"
                yield _breach(f"{key}.column", ttl.column, rule, f"tables.{pattern}.{said}")


def _sources(settings: Settings) -> Iterator[Breach]:
    for pattern in settings.sources:
        if not 1 <= len(pattern) <= SOURCE_NAME_MAX:
            rule = f"a source pattern has 1 to {SOURCE_NAME_MAX} characters, `*` for anything"
            yield Breach((), Mistake(f"sources.{pattern}", pattern, rule))


def _places(settings: Settings, writing: bool) -> Iterator[Breach]:
    """Nothing but directories may stand where directories will be."""
    refused: list[str] = []
    for key, path in _directories(settings):
        if any(_inside(path, other) for other in refused):
            continue  # It stands or falls with the directory above it.
        existing = path
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            refused.append(path)
            yield _breach(key, path, f"must be a directory, or a path where one can be made: {existing} is not a directory")
        elif writing and not os.access(existing, os.W_OK | os.X_OK):
            refused.append(path)
            yield _breach(key, path, f"must be writable: {existing} is not writable by this user")


def _apart(settings: Settings) -> Iterator[Breach]:
    """A directory inside another would have its files taken for the other's."""
    accepted: list[tuple[str, str, str]] = []
    for key, path in _directories(settings):
        real = os.path.realpath(path)
        for other_key, other_path, other_real in accepted:
            if real == other_real:
                yield _breach(key, path, f"must differ from {other_key} ({other_path})", other_key)
                break
            if _inside(other_real, real) or (_inside(real, other_real) and other_key != "data"):
                yield _breach(key, path, f"must not contain {other_key} ({other_path}), nor lie inside it", other_key)
                break
        else:
            accepted.append((key, path, real))


def _inside(path: str, parent: str) -> bool:
    return path.startswith(parent.rstrip(os.sep) + os.sep)


def _directories(settings: Settings) -> list[tuple[str, str]]:
    places = [("data", settings.data), *(("log.directories", path) for path in settings.log.directories)]
    if settings.warehouse.uri.startswith("file://"):
        places.append(("warehouse.uri", settings.warehouse.uri.removeprefix("file://")))
    return places
