"""The control socket: messages arrive, questions are answered, and either side may go and come back."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dolake.clock import real_runtime
from dolake.control import MESSAGE_BYTES_MAX, ControlClient, ControlHub, Message, ask_once
from dolake.errors import ConfigurationError, DaemonUnreachable, LogRefused, RequestRefused


class Ears:
    """Keeps what it hears and lets a test wait for a message of some type."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Message]] = []
        self._news = asyncio.Event()

    def __call__(self, role: str, message: Message) -> None:
        self.heard.append((role, message))
        self._news.set()

    async def wait_for(self, kind: str) -> Message:
        async with asyncio.timeout(10):
            while True:
                for _, message in self.heard:
                    if message["type"] == kind:
                        return message
                self._news.clear()
                await self._news.wait()


async def echo(ask: Message) -> Message:
    return {"what": ask["what"], "tables": ask.get("tables")}


def make_hub(path: Path, ears: Ears, answer: Callable[[Message], Awaitable[Message]] = echo) -> ControlHub:
    return ControlHub(str(path), runtime=real_runtime(), receive=ears, answer=answer)


def make_client(path: Path, ears: Ears | None = None, **more: Any) -> ControlClient:
    return ControlClient(
        str(path), role="writer", runtime=real_runtime(), receive=(lambda message: ears("hub", message)) if ears else lambda _: None, **more
    )


def test_a_client_says_who_it_is_and_what_it_tells_arrives(tmp_path: Path) -> None:
    async def scenario() -> None:
        ears = Ears()
        hub = make_hub(tmp_path / "control.sock", ears)
        await hub.start()
        client = make_client(tmp_path / "control.sock")
        client.start()
        assert (await ears.wait_for("hello"))["pid"] == os.getpid()
        assert client.send({"type": "progress", "logs": {"l": {"low": 2**63}}})
        assert (await ears.wait_for("progress"))["logs"]["l"]["low"] == 2**63
        assert hub.connected("writer")
        assert not hub.connected("http")
        assert hub.silence_s("writer") is not None
        await client.close()
        await ears.wait_for("gone")
        assert not hub.connected("writer")
        assert hub.silence_s("writer") is None
        await hub.close()
        assert os.listdir(tmp_path) == []

    asyncio.run(scenario())


def test_asks_are_answered_by_id_and_refusals_keep_their_exit_code(tmp_path: Path) -> None:
    async def answer(ask: Message) -> Message:
        if ask["what"] == "slow":
            await asyncio.sleep(0.05)
        if ask["what"] == "refused":
            raise LogRefused("the log is somebody else's")
        if ask["what"] == "broken":
            raise ZeroDivisionError
        return {"echo": ask["what"]}

    async def scenario() -> None:
        hub = make_hub(tmp_path / "control.sock", Ears(), answer)
        await hub.start()
        client = make_client(tmp_path / "control.sock")
        await client.connect()
        listening = asyncio.create_task(client.listen())
        slow, fast = await asyncio.gather(client.ask("slow"), client.ask("fast"))
        assert (slow["echo"], fast["echo"]) == ("slow", "fast")
        with pytest.raises(RequestRefused, match="somebody else's") as refusal:
            await client.ask("refused")
        assert refusal.value.exit_code == LogRefused.exit_code
        with pytest.raises(RequestRefused, match="ZeroDivisionError"):
            await client.ask("broken")
        assert (await ask_once(str(tmp_path / "control.sock"), "state", runtime=real_runtime()))["echo"] == "state"
        await hub.close()
        await listening

    asyncio.run(scenario())


def test_a_request_of_the_hub_fails_when_its_peer_goes_and_is_answered_when_it_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        ears = Ears()
        hub = make_hub(tmp_path / "control.sock", ears)
        await hub.start()
        with pytest.raises(DaemonUnreachable, match="no writer"):
            await hub.request("writer", {"type": "flush"})
        commands = Ears()
        client = make_client(tmp_path / "control.sock", commands)
        client.start()
        await ears.wait_for("hello")
        asking = asyncio.create_task(hub.request("writer", {"type": "flush", "tables": None}))
        flush = await commands.wait_for("flush")
        client.send({"type": "flush_result", "id": flush["id"], "result": {"success": True}})
        assert (await asking)["result"] == {"success": True}
        asking = asyncio.create_task(hub.request("writer", {"type": "flush"}))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(DaemonUnreachable, match="writer has gone"):
            await asking
        await hub.close()

    asyncio.run(scenario())


def test_a_client_comes_back_by_itself_when_the_hub_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "control.sock"
        hellos = 0

        def count() -> None:
            nonlocal hellos
            hellos += 1

        client = make_client(path, connected=count)
        client.start()
        with pytest.raises(DaemonUnreachable):
            await client.ask("state")
        for life in (1, 2):
            ears = Ears()
            hub = make_hub(path, ears)
            await hub.start()
            await ears.wait_for("hello")
            assert hellos == life
            await hub.close()
        await client.close()

    asyncio.run(scenario())


def test_an_ask_under_way_fails_when_the_hub_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        started = asyncio.Event()

        async def never(ask: Message) -> Message:
            started.set()
            await asyncio.Event().wait()
            return {}

        hub = make_hub(tmp_path / "control.sock", Ears(), never)
        await hub.start()
        asking = asyncio.create_task(ask_once(str(tmp_path / "control.sock"), "flush", runtime=real_runtime(), timeout_s=None))
        await started.wait()
        await hub.close()
        with pytest.raises(DaemonUnreachable, match="has gone"):
            await asking

    asyncio.run(scenario())


def test_an_ask_without_an_answer_ends_in_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def never(ask: Message) -> Message:
            await asyncio.Event().wait()
            return {}

        hub = make_hub(tmp_path / "control.sock", Ears(), never)
        await hub.start()
        with pytest.raises(DaemonUnreachable, match=r"within 0\.05 s"):
            await ask_once(str(tmp_path / "control.sock"), "flush", runtime=real_runtime(), timeout_s=0.05)
        await hub.close()

    asyncio.run(scenario())


def test_nobody_listening_is_said_at_once_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="dolake serve"):
        asyncio.run(ask_once(str(tmp_path / "control.sock"), "state", runtime=real_runtime()))


def test_a_path_longer_than_a_socket_address_works_and_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    before = set(os.listdir("/tmp"))

    async def scenario() -> None:
        hub = make_hub(directory / "control.sock", Ears())
        await hub.start()
        assert (await ask_once(str(directory / "control.sock"), "state", runtime=real_runtime()))["what"] == "state"
        assert stat.S_ISSOCK(os.stat(directory / "control.sock").st_mode)
        await hub.close()

    asyncio.run(scenario())
    assert list(directory.iterdir()) == []
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith("dolake-")]


def test_the_socket_is_the_owners_alone_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def scenario() -> None:
        hub = make_hub(path, Ears())
        await hub.start()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        newer = make_hub(path, Ears())
        await newer.start()
        await hub.close()
        assert path.exists(), "an older hub must not take the newer one's socket away"
        await newer.close()

    asyncio.run(scenario())


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("precious")
    with pytest.raises(ConfigurationError):
        asyncio.run(make_hub(tmp_path / "control.sock", Ears()).start())
    assert (tmp_path / "control.sock").read_text() == "precious"


@pytest.mark.parametrize(
    "first",
    [b"nonsense\n", b"[1]\n", b'{"type":"ask","id":1,"what":"state"}\n', b'{"type":"hello"}\n', b"{", b"x" * (MESSAGE_BYTES_MAX + 10)],
    ids=["not JSON", "not an object", "no hello", "no role", "cut off", "too large"],
)
def test_a_stranger_is_cut_off_and_the_others_are_served(tmp_path: Path, first: bytes) -> None:
    async def scenario() -> None:
        path = tmp_path / "control.sock"
        hub = make_hub(path, Ears())
        await hub.start()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(first)
        if first == b"{":
            writer.write_eof()
        assert await reader.read() == b"" if len(first) < 100 else await cut_off(reader)
        writer.close()
        assert (await ask_once(str(path), "state", runtime=real_runtime()))["what"] == "state"
        await hub.close()

    async def cut_off(reader: asyncio.StreamReader) -> bool:
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True

    asyncio.run(scenario())


def test_a_message_above_the_bound_is_not_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        ears = Ears()
        hub = make_hub(tmp_path / "control.sock", ears)
        await hub.start()
        client = make_client(tmp_path / "control.sock")
        client.start()
        await ears.wait_for("hello")
        assert not client.send({"type": "progress", "x": "y" * MESSAGE_BYTES_MAX})
        assert client.send({"type": "small"})
        await ears.wait_for("small")
        await client.close()
        await hub.close()

    asyncio.run(scenario())


def test_of_two_writers_the_newer_is_heard(tmp_path: Path) -> None:
    async def scenario() -> None:
        ears = Ears()
        hub = make_hub(tmp_path / "control.sock", ears)
        await hub.start()
        older, newer = make_client(tmp_path / "control.sock"), make_client(tmp_path / "control.sock")
        older.start()
        await ears.wait_for("hello")
        ears.heard.clear()
        newer.start()
        await ears.wait_for("hello")
        older.send({"type": "stale"})
        newer.send({"type": "fresh"})
        await ears.wait_for("fresh")
        answers = asyncio.create_task(older.ask("state"))  # By the time it is answered, `stale` has been read too.
        await answers
        assert "stale" not in [message["type"] for _, message in ears.heard]
        await older.close()
        await newer.close()
        await hub.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("where", ["connected", "receive"])
def test_what_a_client_cannot_bear_ends_its_task_and_is_told_there(tmp_path: Path, where: str) -> None:
    """It is not connected for ever to a hub that it hears no more."""

    def fail(*_: object) -> None:
        raise ValueError(where)

    async def scenario() -> None:
        ears = Ears()
        hub = make_hub(tmp_path / "control.sock", ears)
        await hub.start()
        callbacks: dict[str, Any] = {"connected": lambda: None, "receive": lambda message: None, where: fail}
        client = ControlClient(str(tmp_path / "control.sock"), role="writer", runtime=real_runtime(), **callbacks)
        listening = client.start()
        await ears.wait_for("hello")
        hub.send("writer", {"type": "flush", "id": 1})
        async with asyncio.timeout(10):
            with pytest.raises(ValueError, match=where):
                await listening
        assert not client.is_connected
        await client.close()
        await hub.close()

    asyncio.run(scenario())
