"""Who may connect: how many are here, how many of one address, how fast they come. Values in, verdicts out; no socket here.

An address has its own allowance of new connections, so that a client that connects over and over shuts out nobody but
itself. What is refused costs the allowance nothing: who waits as told gets in. A connection over a unix socket has no address
and counts only towards the total.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter, deque
from dataclasses import dataclass

from dolake.cdc.answer import Reason

WINDOW_S = 1.0
FULL_RETRY_S = 5.0  # Nobody knows when somebody will leave.
UNDECIDED_TIMES_MAX = 2  # So many times the limit may be here at once, those included that are still in their handshake.
HAMMERING_TIMES = 10  # So many times the new connections of a second are told why they are refused; more are cut off.
_IPV6_PREFIX = 64  # What one customer of a provider is given at least: more addresses than there are limits.


@dataclass(frozen=True)
class ConnectionLimits:
    """Connections in all and of one address, and new ones of one address in any second.

    `sockets` is how many there may be with those that are still in their handshake; what the system can carry, if that is less.
    """

    total: int = 10_000
    per_address: int = 100
    new_per_s: int = 20
    sockets: int | None = None

    @property
    def sockets_max(self) -> int:
        wanted = UNDECIDED_TIMES_MAX * self.total
        return wanted if self.sockets is None else min(wanted, self.sockets)


@dataclass(frozen=True)
class TooMany:
    """A connection is not taken now: `reason` as in a nack, and when to try again."""

    reason: Reason
    message: str
    retry_s: float

    @property
    def retry_after_s(self) -> int:
        """For the header, which takes whole seconds."""
        return max(1, math.ceil(self.retry_s))


class Admission:
    """Counts sockets from their first byte (`arrived` … `left`), and those among them that were let in (`admit`)."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self.socket_count = self.admitted_count = 0
        self._sockets_of: Counter[str] = Counter()
        self._admitted_of: Counter[str] = Counter()
        self._second, self._arrivals_of = 0, Counter[str]()
        self._recent_s: dict[str, deque[float]] = {}  # when connections were let in; who came last stands last

    def arrived(self, address: str | None, now_s: float) -> bool:
        """Whether a socket may stay to say what it wants; if not, it is not counted. There is no room to tell it why."""
        if self.socket_count >= self._limits.sockets_max:
            return False
        if address is not None:
            if self._sockets_of[address] >= UNDECIDED_TIMES_MAX * self._limits.per_address or self._is_hammering(address, now_s):
                return False
            self._sockets_of[address] += 1
        self.socket_count += 1
        return True

    def admit(self, address: str | None, now_s: float) -> TooMany | None:
        """Why a socket that has arrived may not be served; None, and it counts as let in, if it may."""
        limits = self._limits
        if self.admitted_count >= limits.total:
            return TooMany(Reason.CONNECTION_LIMIT, f"at most {limits.total} connections are served at once", FULL_RETRY_S)
        if address is not None:
            if self._admitted_of[address] >= limits.per_address:
                text = f"at most {limits.per_address} connections of one address are served at once (yours is {address})"
                return TooMany(Reason.IP_LIMIT, text, FULL_RETRY_S)
            retry_s = self._note(address, now_s)
            if retry_s > 0:
                text = f"at most {limits.new_per_s} new connections of one address are taken in a second (yours is {address})"
                return TooMany(Reason.CONNECTION_LIMIT, text, retry_s)
            self._admitted_of[address] += 1
        self.admitted_count += 1
        return None

    def left(self, address: str | None, *, was_admitted: bool) -> None:
        """A socket that had arrived is gone."""
        self.socket_count -= 1
        self.admitted_count -= was_admitted
        if address is not None:
            for counts, gone in ((self._sockets_of, 1), (self._admitted_of, int(was_admitted))):
                counts[address] -= gone
                if not counts[address]:
                    del counts[address]

    def _is_hammering(self, address: str, now_s: float) -> bool:
        """Whether an address does not heed what it is told: even refusing takes time."""
        second = int(now_s // WINDOW_S)
        if second != self._second:
            self._second = second
            self._arrivals_of.clear()
        self._arrivals_of[address] += 1
        return self._arrivals_of[address] > HAMMERING_TIMES * self._limits.new_per_s

    def _note(self, address: str, now_s: float) -> float:
        """0 when the address may have one more connection now, and that is noted; else how long it should wait, in seconds."""
        bound_s = now_s - WINDOW_S
        while self._recent_s and next(iter(self._recent_s.values()))[-1] <= bound_s:
            del self._recent_s[next(iter(self._recent_s))]
        recent = self._recent_s.get(address, deque())
        while recent and recent[0] <= bound_s:
            recent.popleft()
        if len(recent) >= self._limits.new_per_s:
            return recent[0] - bound_s
        recent.append(now_s)
        self._recent_s.pop(address, None)
        self._recent_s[address] = recent
        return 0.0


def counted_address(peer: object) -> str | None:
    """What a socket's peer counts as: its address, of IPv6 the network it is in; None where it has none (a unix socket)."""
    host = peer[0] if isinstance(peer, tuple) and peer else None
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((int(address), _IPV6_PREFIX), strict=False))
    return str(address)
