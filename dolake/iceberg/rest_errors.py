"""What the Iceberg REST catalog answers instead of a result: a status, the type that its specification names, a sentence.

Clients act on the status and the type, so each is made in one place, here.
"""

from __future__ import annotations

from dolake.errors import DolakeError


class CatalogRefusal(DolakeError):
    """An answer that is none. `kind` is the specification's type; `retry_after_s` only where nothing at all was done."""

    exit_code = 5

    def __init__(self, status: int, kind: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after_s = status, kind, retry_after_s

    def body(self) -> dict[str, object]:
        return {"error": {"message": str(self), "type": self.kind, "code": self.status}}


def bad_request(message: str) -> CatalogRefusal:
    """What is asked for breaks a rule: it is as wrong the next time."""
    return CatalogRefusal(400, "BadRequestException", message)


def forbidden(message: str) -> CatalogRefusal:
    return CatalogRefusal(403, "ForbiddenException", message)


def no_table(name: object) -> CatalogRefusal:
    return CatalogRefusal(404, "NoSuchTableException", f"there is no table {name}")


def no_namespace(name: object) -> CatalogRefusal:
    return CatalogRefusal(404, "NoSuchNamespaceException", f"there is no namespace {name}")


def unsupported(message: str) -> CatalogRefusal:
    return CatalogRefusal(406, "UnsupportedOperationException", message)


def exists(message: str) -> CatalogRefusal:
    return CatalogRefusal(409, "AlreadyExistsException", message)


def not_empty(message: str) -> CatalogRefusal:
    return CatalogRefusal(409, "NamespaceNotEmptyException", message)


def commit_failed(message: str) -> CatalogRefusal:
    """The table is not as the client thought: load it, look, and perhaps try again. Nothing was changed."""
    return CatalogRefusal(409, "CommitFailedException", message)


def state_unknown(message: str) -> CatalogRefusal:
    """It may have been done or not: only looking tells."""
    return CatalogRefusal(500, "CommitStateUnknownException", message)


def unavailable(message: str) -> CatalogRefusal:
    """Nothing was done; later it may be."""
    return CatalogRefusal(503, "ServiceUnavailableException", message, retry_after_s=1)
