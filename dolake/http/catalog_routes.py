"""Which REST catalog request a method and a path are. A value machine: the path as it was sent, still quoted.

Each segment is unquoted by itself, so that a slash inside a name stays in it. A path that the specification has and dolake
does not serve is told from one that nobody has: 406 or 404.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from dolake.iceberg.rest_errors import CatalogRefusal, bad_request, unsupported

PREFIX = "/v1/"
_NAMESPACE = "namespaces/{namespace}"
_TABLE = f"{_NAMESPACE}/tables/{{table}}"

# template → method → the action; the paths of the specification, without its optional prefix.
SERVED: dict[str, dict[str, str]] = {
    "config": {"GET": "config"},
    "namespaces": {"GET": "list_namespaces", "POST": "create_namespace"},
    _NAMESPACE: {"GET": "load_namespace", "HEAD": "namespace_exists", "DELETE": "drop_namespace"},
    f"{_NAMESPACE}/properties": {"POST": "update_namespace"},
    f"{_NAMESPACE}/tables": {"GET": "list_tables", "POST": "create_table"},
    f"{_NAMESPACE}/register": {"POST": "register_table"},
    _TABLE: {"GET": "load_table", "HEAD": "table_exists", "POST": "commit_table", "DELETE": "drop_table"},
    f"{_TABLE}/credentials": {"GET": "load_credentials"},
    f"{_TABLE}/metrics": {"POST": "report_metrics"},
    "tables/rename": {"POST": "rename_table"},
    "transactions/commit": {"POST": "commit_transaction"},
}
# The specification's other paths, and why they are not served.
_NO_VIEWS = "there are no views here"
_NO_PLANS = "scans are planned by the client"
_UNSERVED: dict[str, str] = {
    "oauth/tokens": "tokens are not given out over HTTP: `dolake token new` makes one",
    f"{_NAMESPACE}/functions": "there are no functions here",
    f"{_NAMESPACE}/functions/{{function}}": "there are no functions here",
    f"{_NAMESPACE}/views": _NO_VIEWS,
    f"{_NAMESPACE}/views/{{view}}": _NO_VIEWS,
    f"{_NAMESPACE}/register-view": _NO_VIEWS,
    "views/rename": _NO_VIEWS,
    f"{_TABLE}/plan": _NO_PLANS,
    f"{_TABLE}/plan/{{plan-id}}": _NO_PLANS,
    f"{_TABLE}/tasks": _NO_PLANS,
    f"{_TABLE}/sign": "requests are not signed here",
    f"{_TABLE}/unregister": "drop the table without purging it: its files stay",
}
_TEMPLATES = {template: template.split("/") for template in (*SERVED, *_UNSERVED)}
ENDPOINTS: Sequence[str] = [
    f"{method} {PREFIX}{{prefix}}/{template}" for template, methods in SERVED.items() if template != "config" for method in methods
]
OTHER = f"{PREFIX}other"


@dataclass(frozen=True)
class Route:
    """What is asked: `template` is one of few, `parameters` are the names in the path, unquoted."""

    template: str
    action: str
    parameters: Mapping[str, str]


def template_of(path: str) -> str:
    """The path's template, for counting: one of few, whatever is asked."""
    found = _match(path.removeprefix(PREFIX).split("/"))
    return OTHER if found is None else PREFIX + found


def route(method: str, raw_path: str) -> Route:
    """Raises CatalogRefusal: 400 for names that are no text, 404 for a path nobody has, 405 for a method, 406 for what is not served."""
    segments = raw_path.removeprefix(PREFIX).split("/")
    template = _match(segments)
    if template is None:
        raise CatalogRefusal(404, "NotFoundException", f"there is nothing at {raw_path[:200]}")
    if template in _UNSERVED:
        raise unsupported(_UNSERVED[template])
    action = SERVED[template].get(method)
    if action is None:
        raise CatalogRefusal(405, "MethodNotAllowedException", f"{method[:20]} is not for {PREFIX}{template}")
    names = {part[1:-1]: _unquoted(segment) for part, segment in zip(_TEMPLATES[template], segments, strict=True) if part[0] == "{"}
    return Route(template, action, names)


def _match(segments: Sequence[str]) -> str | None:
    for template, parts in _TEMPLATES.items():
        if len(parts) == len(segments) and all(part == segment or part[0] == "{" for part, segment in zip(parts, segments, strict=True)):
            return template
    return None


def _unquoted(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise bad_request(f"a name in the path is not UTF-8 (got {segment[:200]})") from None
