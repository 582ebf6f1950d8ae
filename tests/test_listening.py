"""The sockets a daemon binds: a port that is about to be free is waited for."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from dolake.config import Settings
from dolake.daemon.listening import bind


def test_a_port_that_is_still_held_is_taken_once_it_is_let_go(tmp_path: Path) -> None:
    """As the children of a daemon that was killed hold it, for a moment."""
    holder = socket.create_server(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    settings = Settings.model_validate({"data": str(tmp_path), "port": port})
    found: list[socket.socket] = []
    binding = threading.Thread(target=lambda: found.append(bind(settings, key="port")))
    binding.start()
    binding.join(0.2)
    waited = binding.is_alive()
    holder.close()
    binding.join(30)
    assert waited
    assert [one.getsockname()[1] for one in found] == [port]
    found[0].close()
