"""Certificates and keys: read, checked, and put into force, also while connections are open.

What is served is held in memory (`Certificates`), so that a process that is started again needs no file: between two reloads
the files may be anything. TLS 1.2 is the oldest that is spoken, on both sides.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from dolake.errors import ConfigurationError, Mistake

SETTINGS = ("tls.certificate", "tls.key", "tls.client_ca")
FLAGS = ("--certificate", "--certificate-key", "--ca")
_OLDEST = ssl.TLSVersion.TLSv1_2
_UNREADABLE_KEY = "must be a private key in PEM"
_SSL_REASONS = {
    "KEY_VALUES_MISMATCH": "must be the key that belongs to the certificate",
    "EE_KEY_TOO_SMALL": "must belong to a certificate of a stronger key: this one is too small",
    "CA_KEY_TOO_SMALL": "must belong to a certificate of a stronger key: its CA's is too small",
    "CA_MD_TOO_WEAK": "must belong to a certificate of a stronger signature: its CA's is too weak",
}


@dataclass(frozen=True)
class Certificates:
    """PEM texts: the server's chain, its key, and the CA whose certificates clients must show, if they must show any."""

    chain: str
    key: str = field(repr=False)
    client_ca: str | None = None

    @classmethod
    def read(cls, certificate: str, key: str, client_ca: str | None = None, *, names: tuple[str, str, str] = SETTINGS) -> Certificates:
        """From files. `names` are what the user calls the three. Raises ConfigurationError with every mistake in them."""
        mistakes: list[Mistake] = []
        texts = {}
        for name, path in zip(names, (certificate, key, client_ca), strict=True):
            if path is None:
                continue
            try:
                with open(path, encoding="ascii") as file:
                    texts[name] = file.read()
            except OSError as error:
                mistakes.append(Mistake(name, path, f"must be a file that can be read: {error.strerror}"))
            except UnicodeDecodeError:
                mistakes.append(Mistake(name, path, "must be PEM: this is not text"))
            else:
                if name != names[1] and (rule := _not_certificates(texts[name])):
                    mistakes.append(Mistake(name, path, rule))
        if mistakes:
            raise ConfigurationError(mistakes)
        found = cls(texts[names[0]], texts[names[1]], texts.get(names[2]))
        try:
            server_context(found)
        except ValueError as rule:
            raise ConfigurationError([Mistake(names[1], key, str(rule))]) from None
        return found


class ServerTls(ssl.SSLContext):
    """What a listening socket is given for its whole life. Each new connection gets the context of that moment; those that
    are open keep theirs, so that a reload drops none.

    asyncio, uvloop and uvicorn all ask their context for one thing, `wrap_bio`, once for each connection.
    """

    def __new__(cls, certificates: Certificates) -> ServerTls:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificates: Certificates) -> None:
        self._current = server_context(certificates)

    def replace(self, certificates: Certificates) -> None:
        """For connections from now on. Raises ValueError, and keeps what is there, if they cannot be put to use."""
        self._current = server_context(certificates)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """A connection's own TLS, under what is in force now."""
        return self._current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def server_context(certificates: Certificates) -> ssl.SSLContext:
    """Raises ValueError with the rule that the key breaks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _OLDEST
    context.options |= ssl.OP_NO_RENEGOTIATION
    with _as_file(certificates.key + "\n" + certificates.chain) as path:
        _load(context, path)
    if certificates.client_ca is not None:
        context.load_verify_locations(cadata=certificates.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0  # A resumed session would not be asked for its certificate again.
    return context


def client_context(ca: str | None = None, certificate: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """What a client trusts (the system's CAs, or those in the file `ca` alone) and shows. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _OLDEST
    if ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(ca)
        except (OSError, ValueError) as error:
            raise ConfigurationError([Mistake("--ca", ca, f"must be a file of CA certificates in PEM: {_words(error)}")]) from None
    if (certificate is None) != (key is None):
        missing, given = ("--certificate-key", "--certificate") if key is None else ("--certificate", "--certificate-key")
        raise ConfigurationError([Mistake(missing, "nothing", f"must be given together with {given}")])
    if certificate is not None and key is not None:
        found = Certificates.read(certificate, key, names=FLAGS)
        with _as_file(found.key + "\n" + found.chain) as path:
            _load(context, path)
    return context


def refusal_of(error: BaseException, url: str) -> str | None:
    """Why TLS did not come about, as a sentence with its remedy; None if that is not what the error, or its cause, is about."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        words = cause.verify_message.rstrip(".")
        return f"the certificate of {url} is refused: {words}; --ca names the file of the CA to trust"
    if cause is None:
        return None
    reason = (cause.reason or "").lower().replace("_", " ")
    if "certificate" in reason or "unknown ca" in reason:
        return f"{url} refuses our certificate, or the lack of one ({reason}): give --certificate and --certificate-key"
    return f"no TLS is spoken at {url} that is good enough here ({reason or cause})"


def _not_certificates(text: str) -> str | None:
    """The rule that a PEM text breaks which should hold certificates; None if it does."""
    if "-----BEGIN CERTIFICATE-----" not in text:
        return "must hold a certificate in PEM: there is no BEGIN CERTIFICATE in it"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        return f"must hold certificates in PEM: {_words(error)}"
    return None


def _load(context: ssl.SSLContext, path: str) -> None:
    def refuse() -> str:
        raise ValueError("must not be encrypted: there is nobody to ask for its passphrase")

    try:
        context.load_cert_chain(path, password=refuse)
    except ssl.SSLError as error:
        raise ValueError(_SSL_REASONS.get(error.reason or "", _UNREADABLE_KEY)) from None


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """The ssl module reads keys from files only: one in memory where the system has that, else one that nobody else may read."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("dolake-tls"), "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:  # Made with mode 0600.
        file.write(text)
        file.flush()
        yield file.name
