"""Anybody may listen to the transitions of commands, not only runs."""

import pytest

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.waiting import eventually
from umbel.messages import Command, Reported
from umbel_server.commands.listeners import Listeners, Transition


def test_listeners_of_reports_hear_of_them_and_one_that_raises_stops_nobody(
    running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = Reported("phone", "litert", "r", "a", 3, 0, 1.0, [])

    def work(command: Command) -> Reported:
        return outcome

    def broken(transition: Transition) -> None:
        raise RuntimeError("this listener is broken")

    listeners, heard, others = running.server.exchange.listeners, list[Transition](), list[Transition]()
    listeners.to_kind("report", broken)
    end = listeners.to_kind("report", heard.append)
    listeners.to_kind("cancel", others.append)
    device = ScriptedDevice(running, "phone", work)
    running.wait_online(1)

    def report() -> str:
        (sent,) = running.server.outbox.latest(POPULATION, "phone", 1)
        return sent.id

    running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    eventually(lambda: heard and heard[-1].state == "done")
    assert {(one.command, one.kind, one.device, one.assignment) for one in heard} == {
        (report(), "report", "phone", None)
    }
    assert heard[-1].outcome == outcome
    assert "this listener is broken" in caplog.text
    count = len(heard)
    end()
    end()
    running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    eventually(lambda: running.server.outbox.get(report()).state == "done")
    assert (len(heard), others) == (count, [])
    device.stop()


def test_each_listener_hears_what_it_listens_to() -> None:
    listeners, heard = Listeners(), list[str]()
    listeners.to_all(lambda _: heard.append("all"))
    listeners.to_population("p", lambda _: heard.append("population"))
    listeners.to_run("r", lambda _: heard.append("run"))
    listeners.to_command("c", lambda _: heard.append("command"))
    listeners.to_presence("p", lambda: heard.append("presence"))
    listeners.tell(Transition("c", "p", "d", "report", "done", "", 0.0))
    assert heard == ["all", "population", "command"]
    listeners.tell(Transition("other", "q", "d", "report", "done", "", 0.0))
    listeners.tell_presence("q")
    assert heard == ["all", "population", "command", "all"]
    listeners.tell_presence(None)
    assert heard[-1] == "presence"
