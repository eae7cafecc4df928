"""The broker itself as the attacker: it loses, repeats, reorders, makes up, and speaks for whom it likes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.brokers import EmbeddedProcess
from tests.faults.mqtt_proxy import DisturbingProxy
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import messages, signing, topics
from umbel.messages import Ack, Cancel, Command, Result, Status, Trained
from umbel.mqtt import Link
from umbel.plan import Plan
from umbel_edge.config import AgentConfig, Mqtt
from umbel_server.commands import delivery
from umbel_server.runs.settings import RunSettings

PlanOf = Callable[[str], Plan]


class LosingProxy(DisturbingProxy):
    """Once it disturbs, it also loses one message in four, having said that it has it."""

    def delays(self) -> list[float]:
        return [] if self._random.random() < 0.25 else super().delays()


@dataclass
class Mallory:
    """Has every message that went through the broker, and publishes what it likes."""

    link: Link
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    def say(self, topic: str, token: bytes, retain: bool = False) -> None:
        self.link.publish(topic, token, retain)

    def heard_on(self, channel: str) -> list[bytes]:
        return [token for topic, token in list(self.heard) if topic.endswith("/" + channel)]


@dataclass
class Attacked:
    """A server, a broker, and a real agent behind a proxy."""

    running: RunningServer
    proxy: DisturbingProxy
    config: AgentConfig
    agent: RunningAgent
    mallory: Mallory

    def train(self, plan: Plan, rounds: int) -> dict[str, Any]:
        policy = {"deadline": 60.0, "attempts": 1}
        wanted = msgspec.convert({"rounds": rounds, "policy": policy}, RunSettings)
        id = self.running.server.runs.start(POPULATION, plan.sha256, wanted).id
        eventually(lambda: self.running.server.runs.get(id).state != "running", 80)
        return self.running.client.get(f"/v1/runs/{id}")

    def report(self) -> dict[str, Any]:
        wanted = {"population": POPULATION, "kind": "report", "devices": ["phone"]}
        done = settled(self.running.client, self.running.client.post("/v1/commands", wanted), 40)[0]
        assert done["state"] == "done", done
        return dict(done["outcome"])


@pytest.fixture
def attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attacked]:
    monkeypatch.setattr(delivery, "RESEND_SECONDS", 0.5)
    monkeypatch.setattr(delivery, "UNFINISHED_SECONDS", 2.0)
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port)
    proxy = LosingProxy(("127.0.0.1", broker.port), random.Random(7))
    proxy.start()
    config = msgspec.structs.replace(config_of(running, tmp_path / "phone"), mqtt=Mqtt("127.0.0.1", proxy.port))
    heard: list[tuple[str, bytes]] = []
    link = Link("127.0.0.1", broker.port, "mallory", ("umbel/#",), lambda topic, token: heard.append((topic, token)))
    link.start()
    assert link.wait_up(10)
    agent = RunningAgent(config)
    running.wait_online(1)
    made = Attacked(running, proxy, config, agent, Mallory(link, heard))
    yield made
    made.agent.stop()
    link.stop()
    proxy.stop()
    running.stop()
    broker.stop()


@pytest.mark.timeout(240)
def test_a_run_finishes_though_messages_are_lost_repeated_and_reordered(attacked: Attacked, plan_of: PlanOf) -> None:
    plan = attacked.running.server.plans.add(plan_of("line").path)
    attacked.proxy.disturb()
    run = attacked.train(plan, 4)
    assert (run["state"], run["round"]) == ("finished", 4)
    assert [one["contributors"] for one in run["checkpoints"]] == [0, 1, 1, 1, 1]
    assert attacked.report()["rounds"] == 4


def test_whatever_was_said_is_said_again_and_changes_nothing(attacked: Attacked, plan_of: PlanOf) -> None:
    plan = attacked.running.server.plans.add(plan_of("line").path)
    run = attacked.train(plan, 3)
    before = attacked.report()
    heard = list(attacked.mallory.heard)
    assert {topic.rsplit("/", 1)[1] for topic, _ in heard} == {"command", "ack", "status", "result"}
    for topic, token in reversed(heard):  # in another order, and retained
        attacked.mallory.say(topic, token, retain=True)
    others = [topics.topic(POPULATION, "phone", channel) for channel in ("command", "ack", "status", "result")]
    for number, (_, token) in enumerate(heard):  # on topics that they were not for
        attacked.mallory.say(others[number % 4], token)
    again = attacked.report()
    assert {**again, "rss_mb": 0.0} == {**before, "rss_mb": 0.0}
    after = attacked.running.client.get(f"/v1/runs/{run['id']}")
    assert after == run
    assert attacked.running.server.devices.get(POPULATION, "phone").online


def test_what_it_kept_is_old_also_for_an_agent_that_was_restarted(attacked: Attacked, plan_of: PlanOf) -> None:
    plan = attacked.running.server.plans.add(plan_of("line").path)
    attacked.train(plan, 2)
    commands = [(topic, token) for topic, token in attacked.mallory.heard if topic.endswith("/command")]
    attacked.agent.stop()
    for topic, token in commands:
        attacked.mallory.say(topic, token, retain=True)
    attacked.agent = RunningAgent(attacked.config)
    attacked.running.wait_online(1)
    for topic, token in commands:
        attacked.mallory.say(topic, token)
    report = attacked.report()
    assert report["rounds"] == 2


def test_it_commands_nobody(attacked: Attacked, caplog: pytest.LogCaptureFixture) -> None:
    key, to = signing.generate_key(), topics.topic(POPULATION, "phone", "command")
    attacked.report()
    genuine = attacked.mallory.heard_on("command")[0]
    payload = signing.payload_unverified(genuine)
    device = attacked.mallory.heard_on("result")[0]
    head, body, tail = genuine.split(b".")
    none = b"eyJhbGciOiJub25lIn0"  # {"alg":"none"}
    answers = len(attacked.mallory.heard_on("ack"))
    forgeries = [
        signing.sign(payload, key),
        b".".join((none, body, b"")),
        b".".join((none, body, tail)),
        b".".join((head, body[:-2] + b"AA", tail)),
        b".".join((head, body, tail[:-4] + b"AAAA")),
        b".".join((head, body, b"")),
        device,  # the device's own word
        messages.encode(Command("0" * 16, POPULATION, "phone", 0.0, 9e9, Cancel("x")), key),
        b"",
        b"\xff" * 1000,
        b"." * 1000,
        b"{" * 100_000,
    ]
    for forgery in forgeries:
        attacked.mallory.say(to, forgery, retain=True)
    assert attacked.report()["rounds"] == 0  # it goes on
    assert len(attacked.mallory.heard_on("ack")) == answers  # and has answered none of them
    assert "without a valid signature" in caplog.text


def test_it_speaks_for_no_device(attacked: Attacked, plan_of: PlanOf, caplog: pytest.LogCaptureFixture) -> None:
    """An update, an acknowledgement and a farewell in the device's name, with another key, unsigned, or altered."""
    key = signing.generate_key()
    attacked.report()
    attacked.agent.stop()
    eventually(lambda: not attacked.running.server.devices.get(POPULATION, "phone").online)
    wanted = {"population": POPULATION, "kind": "report", "devices": ["phone"]}
    command = attacked.running.client.post("/v1/commands", wanted)[0]["id"]
    blob = messages.Blob.of(b"x")
    says: list[tuple[topics.Channel, Ack | Result | Status]] = [
        ("ack", Ack(command, POPULATION, "phone", "done", 0.0)),
        ("result", Result(command, POPULATION, "phone", 0.0, Trained("a", blob, 1, {}))),
        ("status", Status(POPULATION, "phone", 2**40, True)),
    ]
    for channel, message in says:
        to = topics.topic(POPULATION, "phone", channel)
        for token in (
            messages.encode(message, key),
            msgspec.json.encode(message),
            b"e30." + msgspec.json.encode(message),
        ):
            attacked.mallory.say(to, token, retain=channel == "status")
    for token in attacked.mallory.heard_on("status"):  # it was online once
        attacked.mallory.say(topics.topic(POPULATION, "phone", "status"), token, retain=True)
    eventually(lambda: caplog.text.count("refused") >= 1)
    assert attacked.running.client.get(f"/v1/commands/{command}")["state"] == "pending"
    assert not attacked.running.server.devices.get(POPULATION, "phone").online
    attacked.agent = RunningAgent(attacked.config)
    eventually(lambda: attacked.running.client.get(f"/v1/commands/{command}")["state"] == "done", 30)


def test_commands_that_it_held_back_until_they_expired_are_not_executed(attacked: Attacked) -> None:
    attacked.proxy.stall()
    wanted = {"population": POPULATION, "kind": "report", "devices": ["phone"], "ttl": 1.5}
    sent = attacked.running.client.post("/v1/commands", wanted)
    assert settled(attacked.running.client, sent, 20)[0]["state"] == "expired"
    attacked.proxy.restore()
    attacked.report()
    assert attacked.running.client.get(f"/v1/commands/{sent[0]['id']}")["state"] == "expired"
    mine = [
        token
        for token in attacked.mallory.heard_on("result")
        if sent[0]["id"].encode() in signing.payload_unverified(token)
    ]
    assert mine == []
