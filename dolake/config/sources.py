"""Where settings come from: flags over DOLAKE_… environment over `dolake.toml` over defaults.

The environment door: the only module that reads os.environ. Relative paths in a file are relative to that file, elsewhere
to the working directory. Every mistake of every source is collected and raised at once; nothing is created.
"""

from __future__ import annotations

import copy
import difflib
import functools
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from dolake.config.access import TokenSettings
from dolake.config.rules import breaches
from dolake.config.settings import Settings, SourceOverrides
from dolake.config.tables import TableOverrides
from dolake.errors import ConfigurationError, Mistake
from dolake.model import TOKEN_PREFIX

PREFIX = "DOLAKE_"
FILE_NAME = "dolake.toml"
# Variables that begin with DOLAKE_ and are not settings.
OTHER_VARIABLES = {
    "DOLAKE_CONFIG": "the configuration file, as --config",
    "DOLAKE_TOKEN": "the token with which `dolake send` connects, as --token",
    "DOLAKE_FAILPOINTS": "failpoints to arm (tests only); `dolake docs failpoints` lists them",
    "DOLAKE_FAILPOINT_HITS": "a file that the names of failpoints reached are appended to (tests only)",
}
# Used below dolake.toml, so that a machine set up for AWS tools needs nothing more.
_AWS_VARIABLES = {
    "AWS_ENDPOINT_URL_S3": "s3.endpoint",
    "AWS_ENDPOINT_URL": "s3.endpoint",
    "AWS_REGION": "s3.region",
    "AWS_DEFAULT_REGION": "s3.region",
    "AWS_ACCESS_KEY_ID": "s3.access_key",
    "AWS_SECRET_ACCESS_KEY": "s3.secret_key",
    "AWS_SESSION_TOKEN": "s3.session_token",
}
_KEYS_TOGETHER = ("s3.access_key", "s3.secret_key", "s3.session_token")
_SECRETS = (
    *("s3.secret_key", "s3.session_token", "mask_key", "catalog.uri", "catalog.properties", "catalog.secret_key"),
    *("compaction.spark.", "compaction.spark_remote"),
)
_SECTIONS_BY_NAME: dict[str, type[BaseModel]] = {"tables": TableOverrides, "sources": SourceOverrides, "tokens": TokenSettings}
_PATHS = ("data", "s3.credentials_file", "auth.tokens_file", "tls.certificate", "tls.key", "tls.client_ca")
_VALUE_LENGTH_MAX = 200
_NO_DATA = os.path.join(os.sep, "nonexistent")  # Stands in for a missing DIR while the rest is checked; never used.


@dataclass
class _Draft:
    """Raw values, where each came from, and what is already known to be wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def set(self, key: str, value: Any, origin: str) -> None:
        *sections, name = key.split(".")
        place = self.values
        for section in sections:
            inner = place.get(section)
            place = place.setdefault(section, {}) if isinstance(inner, dict | None) else {}
        place[name] = value
        self.origins[key] = origin

    def get(self, key: str) -> Any:
        place: Any = self.values
        for name in key.split("."):
            place = place.get(name) if isinstance(place, dict) else None
        return place

    def mistake(self, key: str, value: object, rule: str, origin: str | None = None) -> None:
        secret = f"{key}.".startswith(_SECRETS) or (
            key.startswith("tokens.") and key.endswith(".hash")
        )  # Who errs there gives the token itself.
        shown = "a secret, not shown" if secret and value not in (None, "nothing", "something", "the same") else _shown(value)
        origin = origin or self.origins.get(key)
        self.mistakes.append(Mistake(_shown(key), shown + (f" from {origin}" if origin else ""), rule))


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
    environment: Mapping[str, str] | None = None,
    writing: bool = True,
    with_tokens: bool | None = None,
) -> Settings:
    """The settings of this process. `flags` by dotted key (`"flush.age_s"`); None values count as absent. With `writing` off,
    directories that this user cannot write to are no mistake, and the file of tokens is read only `with_tokens`: few may.

    Raises ConfigurationError with every mistake.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    variables = process_environment() if environment is None else environment
    draft = _Draft()
    _read_file(draft, config or variables.get("DOLAKE_CONFIG") or _found_file(given.get("data") or variables.get("DOLAKE_DATA")))
    _read_environment(draft, variables)
    for key, value in given.items():
        draft.set(key, value, "--" + key.replace("_", "-").replace(".", "-"))
    _make_absolute(draft, os.getcwd())
    _read_aws(draft, variables)
    with_tokens = writing if with_tokens is None else with_tokens
    tokens_known = with_tokens and _read_tokens_file(draft)
    settings = _validated(draft, writing, tokens_known)
    if draft.mistakes or settings is None:
        raise ConfigurationError(draft.mistakes)
    return settings


def check_token(name: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigurationError if this cannot stand as [tokens.NAME]."""
    draft = _Draft(values={"data": _NO_DATA, "tokens": {name: dict(values)}})
    _validated(draft, writing=False, tokens_known=True)
    if draft.mistakes:
        raise ConfigurationError(draft.mistakes)


def process_environment() -> dict[str, str]:
    """The environment this process was started with."""
    return dict(os.environ)


def setting_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, pydantic field) of every setting that is not a table's or a token's, in the order of the classes."""
    for name, about in model.model_fields.items():
        if isinstance(about.annotation, type) and issubclass(about.annotation, BaseModel):
            yield from setting_keys(about.annotation, f"{prefix}{name}.")
        elif name not in _SECTIONS_BY_NAME:
            yield prefix + name, about


def variable_name(key: str) -> str:
    """`flush.age_s` is DOLAKE_FLUSH_AGE_S in the environment."""
    return PREFIX + key.replace(".", "_").upper()


def _found_file(data: str | None) -> str | None:
    candidates = [os.path.join(data, FILE_NAME)] if data else []
    return next((path for path in [*candidates, FILE_NAME] if os.path.exists(path)), None)


def _read_file(draft: _Draft, path: str | None) -> None:
    values = None if path is None else _toml(draft, "config", path)
    if path is None or values is None:
        return
    draft.values = values
    draft.origins = dict.fromkeys(_leaves(values), path)
    _make_absolute(draft, os.path.dirname(os.path.abspath(path)))


def _read_tokens_file(draft: _Draft) -> bool:
    """Adds the file's tokens to those that are there; False if they are not known. Fails closed: without the file no daemon."""
    path = draft.get("auth.tokens_file")
    if not isinstance(path, str):
        return path is None
    values = _toml(draft, "auth.tokens_file", path)
    if values is None:
        return False
    tokens = values.pop("tokens", {})
    for key in values:
        draft.mistake(key, "a section or value", "must not be set here: a file of tokens holds [tokens.NAME] sections only", path)
    known = draft.values.setdefault("tokens", {})
    if not isinstance(known, dict) or not isinstance(tokens, dict):
        draft.mistake("tokens", "no section", "must be sections: [tokens.NAME]", path)
        return False
    for name, token in tokens.items():
        if name in known:
            draft.mistake(f"tokens.{name}", "two sections", f"must be given once, here or in {FILE_NAME}", path)
        known.setdefault(name, token)
    draft.origins.update(dict.fromkeys(_leaves(tokens, "tokens."), path))
    return True


def _toml(draft: _Draft, key: str, path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        draft.mistake(key, path, f"must be a file that can be read: {error.strerror}")
    except (ValueError, RecursionError) as error:  # Of TOML, of its letters, of Python's own limits on digits and nesting.
        draft.mistake(key, path, f"must be TOML: {error}")
    return None


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _make_absolute(draft: _Draft, directory: str) -> None:
    """Once for the file, once for the rest: a path that is absolute already stays as it is."""
    for key in _PATHS:
        path = draft.get(key)
        if isinstance(path, str) and path:
            *sections, name = key.split(".")
            functools.reduce(dict.__getitem__, sections, draft.values)[name] = os.path.normpath(os.path.join(directory, path))
    logs = draft.get("log.directories")
    if isinstance(logs, str):
        logs = [part for part in logs.split(os.pathsep) if part]
    if isinstance(logs, list | tuple) and all(isinstance(path, str) for path in logs):
        draft.values["log"]["directories"] = [os.path.normpath(os.path.join(directory, path)) for path in logs]


def _read_environment(draft: _Draft, variables: Mapping[str, str]) -> None:
    keys = {variable_name(key): key for key, _ in setting_keys()}
    for variable in sorted(variables):
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        if variable in keys:
            draft.set(keys[variable], variables[variable], variable)
        elif variable.startswith(tuple(PREFIX + name.upper() for name in _SECTIONS_BY_NAME)):
            draft.mistake(variable, variables[variable], f"must not be set: tables, sources and tokens are set in {FILE_NAME}")
        else:
            draft.mistake(variable, variables[variable], "must not be set: no setting has this name" + _nearest(variable, keys))


def _read_aws(draft: _Draft, variables: Mapping[str, str]) -> None:
    uri = draft.get("warehouse.uri")
    if not isinstance(uri, str) or not uri.startswith("s3://"):
        return
    own_keys = any(draft.get(key) is not None for key in (*_KEYS_TOGETHER, "s3.credentials_file"))
    for variable, key in _AWS_VARIABLES.items():
        if variables.get(variable) and draft.get(key) is None and not (own_keys and key in _KEYS_TOGETHER):
            draft.set(key, variables[variable], variable)


def _validated(draft: _Draft, writing: bool, tokens_known: bool) -> Settings | None:
    """The settings, with what is wrong in them added to the draft's mistakes.

    Wrong values are reported, left out, and the rest validated again, so that its relations are checked in the same run.
    """
    wrong: set[str] = set()
    values = draft.values
    if not values.get("data"):
        draft.mistake("data", None, f"is required: give --data DIR, DOLAKE_DATA or data in {FILE_NAME}")
        wrong |= {"data", "log.directories", "warehouse.uri"}
        values = {**values, "data": _NO_DATA}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            key = ".".join(str(part) for part in problem["loc"])
            wrong.add(key)
            draft.mistake(key, None if problem["type"] == "missing" else problem["input"], _rule(problem, draft))
        # A token with one mistake in it goes whole: half of one could mean anything.
        places = [problem["loc"][:2] if problem["loc"][0] == "tokens" else problem["loc"] for problem in error.errors(include_url=False)]
        try:
            settings = Settings.model_validate(_without(values, places))
        except ValidationError:
            return None
    for breach in breaches(settings, writing=writing, tokens_known=tokens_known):
        if not any(key == bad or bad.startswith(key + ".") for key in breach.keys for bad in wrong):
            mistake = breach.mistake
            draft.mistake(mistake.field, mistake.value, mistake.rule)
    return settings


def _without(values: dict[str, Any], places: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy of `values` without what stands at `places`; an element of a list takes its whole list with it."""
    kept: dict[str, Any] = copy.deepcopy(values)
    for place in places:
        section = kept
        for name in place[:-1]:
            if not isinstance(section.get(str(name)), dict):
                break
            section, place = section[str(name)], place[1:]
        section.pop(str(place[0]), None)
    kept.setdefault("data", _NO_DATA)
    return kept


def _rule(problem: Mapping[str, Any], draft: _Draft) -> str:
    """Pydantic's finding as one of our sentences: what the value must be."""
    kind, context = problem["type"], problem.get("ctx", {})
    plain = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be more than {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "finite_number": "must be a finite number",
        "literal_error": "must be {expected}",
        "string_too_short": "must not be empty",
        "missing": "is required",
    }
    if kind in plain:
        return plain[kind].format(**context)
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        *sections, name = (str(part) for part in problem["loc"])
        by_name = _SECTIONS_BY_NAME.get(sections[0]) if len(sections) > 1 else None
        names = [key for key, _ in setting_keys()]
        if by_name is not None:
            names = [".".join([*sections[:2], field]) for field in by_name.model_fields]
        return "must not be set: no setting has this name" + _nearest(".".join([*sections, name]), names)
    for word, rule in (
        ("bool", "must be true or false"),
        ("int", "must be a whole number"),
        ("float", "must be a number"),
        ("string", "must be text"),
    ):
        if kind.startswith(word):
            return rule
    if kind in ("tuple_type", "list_type"):
        return "must be a list"
    if kind in ("model_type", "dict_type", "mapping_type", "model_attributes_type"):
        return "must be a section with keys of its own"
    return str(problem["msg"])


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else repr(value)
    if TOKEN_PREFIX in text:
        return "a token, not shown"
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= _VALUE_LENGTH_MAX else text[:_VALUE_LENGTH_MAX] + "…"
