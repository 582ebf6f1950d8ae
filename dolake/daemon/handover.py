"""What a supervisor hands its children: the settings, and what lets people in. One line of JSON, and another for each reload.

Tokens and certificates are read by the supervisor alone, once, and handed down as they are: every process lets in the same
people from the same reload on, and one that is started again needs no file that may have become something else since.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from dolake.auth.gate import Gate
from dolake.auth.tls import Certificates, ServerTls
from dolake.auth.tokens import TokenBook
from dolake.clock import Clock
from dolake.config import Settings
from dolake.config.rules import require_reloadable

# Raises ConfigurationError.
LoadSettings = Callable[[], Settings]
_RELOADED = ("auth", "tls", "tokens")


@dataclass(frozen=True)
class Handover:
    """Settings, and the certificates that they name, read."""

    settings: Settings
    certificates: Certificates | None = None

    @classmethod
    def read(cls, settings: Settings) -> Handover:
        """Reads the files. Raises ConfigurationError."""
        tls = settings.tls
        if tls.certificate is None or tls.key is None:
            return cls(settings)
        return cls(settings, Certificates.read(tls.certificate, tls.key, tls.client_ca))

    def reloaded(self, fresh: Settings) -> Handover:
        """The same settings, but for who may come in: that is taken from `fresh`. Raises ConfigurationError."""
        merged = self.settings.model_copy(update={name: getattr(fresh, name) for name in _RELOADED})
        require_reloadable(self.settings, merged)
        return Handover.read(merged)

    def differences(self, fresh: Settings) -> list[str]:
        """The settings in `fresh` that a reload does not take up."""
        return [name for name in type(fresh).model_fields if getattr(fresh, name) != getattr(self.settings, name)]

    def without_access(self) -> Handover:
        """For a process that lets nobody in."""
        blank = {name: type(self.settings).model_fields[name].get_default() for name in _RELOADED}
        return Handover(self.settings.model_copy(update=blank))

    def gate(self, clock: Clock) -> Gate:
        """A gate that lets in whom this says."""
        return Gate(clock, TokenBook(self.settings.tokens), None if self.certificates is None else ServerTls(self.certificates))

    def scheme(self, plain: str) -> str:
        """`ws` or `http` as it is spoken here: with an s under TLS."""
        return plain if self.certificates is None else plain + "s"

    def apply(self, gate: Gate) -> None:
        """Puts what lets people in into force. Raises ValueError, and changes nothing, if it cannot be."""
        gate.admit(TokenBook(self.settings.tokens), self.certificates)

    def to_line(self) -> bytes:
        """Secrets too: for a child's pipe, never for a log."""
        certificates = None if self.certificates is None else asdict(self.certificates)
        return json.dumps({"settings": self.settings.to_json(), "certificates": certificates}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Handover:
        value = json.loads(line)
        certificates = value["certificates"]
        return cls(Settings.from_json(value["settings"]), None if certificates is None else Certificates(**certificates))


@dataclass(frozen=True)
class RefusedReload:
    """A reload that came to nothing: told to the children so that it is counted where metrics are."""

    def to_line(self) -> bytes:
        return b'{"refused": true}\n'


def from_line(line: bytes) -> Handover | RefusedReload:
    """What a line after the first one says."""
    return RefusedReload() if json.loads(line).get("refused") else Handover.from_line(line)
