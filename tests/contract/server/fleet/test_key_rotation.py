"""The server's signing key changes under a real fleet: at work, away, invited before, restarted between."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from joserfc.jwk import ECKey

from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import messages, signing, topics
from umbel.enrolment import EnrolmentRequest, Trust
from umbel.errors import UmbelError
from umbel.messages import Command, Rekey, Report
from umbel.mqtt import Link
from umbel.plan import Plan
from umbel.signing import fingerprint, public_key
from umbel.succession import succeed
from umbel_edge.config import AgentConfig
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.device.state import AgentState
from umbel_server.client import Client
from umbel_server.commands import delivery
from umbel_server.runs.settings import RunSettings
from umbel_server.security.keyring import GRACE
from umbel_sim.demo.processes import free_port

PlanOf = Callable[[str], Plan]
DAY = 86_400.0


class Clock:
    """The time, and what is added to it."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Fleet:
    """A server with TLS and a clock that can be put forward, and its agents."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    agents: list[RunningAgent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.begin()

    def begin(self) -> None:
        self.running = RunningServer(self.folder / "server", self.port, tls=True, clock=self.clock)

    def restart(self) -> None:
        self.running.stop()
        self.begin()

    def config(self, name: str = "phone", **other: object) -> AgentConfig:
        made = config_of(self.running, self.folder / name)
        return msgspec.structs.replace(made, device=name, **other)  # type: ignore[arg-type]

    def agent(self, config: AgentConfig, clock: Callable[[], float] = time.time) -> RunningAgent:
        made = RunningAgent(config, clock)
        self.agents.append(made)
        return made

    def rotate(self, overlap: float = 7 * DAY) -> None:
        self.running.client.post("/v1/keys/rotate", {"overlap": overlap})

    def pass_time(self, seconds: float) -> None:
        """Let the overlap end, as far as the server is concerned: devices' clocks stay."""
        self.clock.ahead += seconds
        self.running.server.rotation.step()

    def end_overlap(self) -> None:
        """Let the overlap end for the keys alone, so that no deadline of a round passes."""
        self.running.state.keys.advance(time.time() + 8 * DAY)
        self.running.server.rotation.step()

    @property
    def keys(self) -> list[str]:
        return list(self.running.state.keys.lineage.all)

    def wait_confirmed(self) -> None:
        eventually(lambda: (row := self.running.client.get("/v1/keys")[-1])["confirmed"] == row["devices"] > 0)

    def report(self, device: str = "phone") -> dict[str, object]:
        client = self.running.client
        asked = {"population": POPULATION, "kind": "report", "devices": [device]}
        return dict(settled(client, client.post("/v1/commands", asked), 30)[0])

    def stop(self) -> None:
        for agent in self.agents:
            agent.stop()
        self.running.stop()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(delivery, "RESEND_SECONDS", 1.0)
    made = Fleet(tmp_path)
    yield made
    made.stop()


def trust_of(config: AgentConfig) -> Trust:
    state = AgentState(config.state)
    try:
        pinned = state.pinned()
        assert pinned is not None
        return pinned
    finally:
        state.close()


def enrolled(config: AgentConfig) -> list[str]:
    """Connect once as an agent that is started; the keys that it knows then."""
    state = AgentState(config.state)
    try:
        http = ServerHttp(config, state.key, threading.Event())
        connect(http, config, state, Participation(threading.Event(), lambda: None))
        pinned = state.pinned()
        assert pinned is not None
        return list(pinned.lineage().all)
    finally:
        state.close()


def test_a_fleet_at_work_goes_over_to_the_new_key(fleet: Fleet, plan_of: PlanOf) -> None:
    config = fleet.config()
    agent = fleet.agent(config)
    running = fleet.running
    running.wait_online(1)
    plan = running.server.plans.add(plan_of("line").path)
    settings = msgspec.convert({"rounds": 12, "policy": {"deadline": 60.0, "attempts": 1}}, RunSettings)
    id = running.server.runs.start(POPULATION, plan.sha256, settings).id
    eventually(lambda: running.server.runs.get(id).round >= 2, 40)
    release = running.client.post(f"/v1/runs/{id}/releases", {"variants": ["float32"]})["id"]
    fleet.rotate()
    fleet.wait_confirmed()
    assert [row["state"] for row in running.client.get("/v1/keys")] == ["signing", "announced"]
    eventually(lambda: running.server.runs.get(id).round >= 4, 40)
    fleet.end_overlap()
    assert [row["state"] for row in running.client.get("/v1/keys")] == ["accepted", "signing"]
    assert fingerprint(running.state.key) == fleet.keys[1]
    eventually(lambda: running.server.runs.get(id).state != "running", 60)
    assert running.server.runs.get(id).state == "finished"

    fleet.restart()  # which makes the audit log be read with the keys, and the device come back
    running = fleet.running
    running.wait_online(1)
    assert running.client.get("/v1/audit/verify")["fault"] == ""
    asked = {"population": POPULATION, "kind": "install", "release": release, "variant": "float32"}
    (done,) = settled(running.client, running.client.post("/v1/commands", asked), 30)
    assert done["state"] == "done", done
    agent.stop()
    fleet.agents.clear()
    fleet.agent(config)
    running.wait_online(1)
    assert fleet.report()["state"] == "done"
    assert list(trust_of_running(config).lineage().all) == fleet.keys
    actions = [row["action"] for row in running.client.get("/v1/audit")]
    assert {"keys.rotate", "keys.switch"} <= set(actions)


def trust_of_running(config: AgentConfig) -> Trust:
    return msgspec.json.decode((config.state / "trust.json").read_bytes(), type=Trust)


def test_a_device_that_was_away_for_two_rotations_comes_back(fleet: Fleet, plan_of: PlanOf) -> None:
    config = fleet.config()
    agent = fleet.agent(config)
    fleet.running.wait_online(1)
    plan = fleet.running.server.plans.add(plan_of("line").path)
    agent.stop()
    fleet.agents.clear()
    for _ in range(2):
        fleet.rotate()
        fleet.pass_time(7 * DAY + GRACE + 1)
        fleet.restart()
    assert len(fleet.keys) == 3
    fleet.agent(config, fleet.clock)
    fleet.running.wait_online(1)
    settings = msgspec.convert({"rounds": 1, "policy": {"deadline": 60.0, "attempts": 1}}, RunSettings)
    id = fleet.running.server.runs.start(POPULATION, plan.sha256, settings).id  # a plan signed by the first key
    eventually(lambda: fleet.running.server.runs.get(id).state != "running", 40)
    assert fleet.running.server.runs.get(id).state == "finished"
    assert list(trust_of_running(config).lineage().all) == fleet.keys
    fleet.wait_confirmed()


def test_a_running_device_that_heard_nothing_learns_from_the_first_command(fleet: Fleet) -> None:
    """As one in a tunnel: its news are lost, and it is not started again."""
    fleet.agent(fleet.config())
    fleet.running.wait_online(1)
    keys = fleet.running.state.keys
    keys.begin(0.0, fleet.clock())
    assert fleet.report()["state"] == "done"
    assert list(trust_of_running(fleet.config()).lineage().all) == fleet.keys


def test_an_invitation_from_before_is_good(fleet: Fleet) -> None:
    before = fleet.config()
    for overlap in (7 * DAY, 0.0):
        fleet.rotate(overlap)
    assert enrolled(before) == fleet.keys
    assert enrolled(before) == fleet.keys
    assert trust_of(before).fingerprint() == before.enrolment_token.partition(".")[2]
    assert enrolled(fleet.config("later")) == fleet.keys
    fleet.agent(before)
    fleet.agent(fleet.config("later"))
    fleet.running.wait_online(2)
    for device in ("phone", "later"):
        assert fleet.report(device)["state"] == "done"


def ear(fleet: Fleet, heard: Callable[[str, bytes], None], *channels: topics.Channel) -> Link:
    ours = tuple(topics.topic(POPULATION, "phone", channel) for channel in channels)
    link = Link("127.0.0.1", fleet.port, "ear", ours, heard, tls=fleet.running.state.context())
    link.start()
    assert link.wait_up(10)
    return link


def command(body: messages.Body, name: str) -> Command:
    now = time.time()
    return Command(name, POPULATION, "phone", now, now + 60, body, sequence=int(now * 1e6))


def test_the_thief_of_a_retired_key_commands_nobody(fleet: Fleet) -> None:
    stolen = fleet.running.state.key
    fleet.agent(fleet.config())
    fleet.running.wait_online(1)
    answered: list[str] = []
    key = fleet.running.server.devices.key(POPULATION, "phone")

    def heard(_topic: str, token: bytes) -> None:
        answered.append(msgspec.json.decode(signing.verify(token, key))["command"])

    link = ear(fleet, heard, "result")
    topic = topics.topic(POPULATION, "phone", "command")
    link.publish(topic, messages.encode(command(Report(), "accepted-yet"), stolen))
    eventually(lambda: "accepted-yet" in answered)
    fleet.rotate(0.0)
    fleet.wait_confirmed()
    for number in range(3):
        link.publish(topic, messages.encode(command(Report(), f"forged-{number}"), stolen))
    done = fleet.report()
    assert done["state"] == "done"
    eventually(lambda: done["id"] in answered)
    assert not [id for id in answered if id.startswith("forged")]
    link.stop()


def test_a_forged_succession_is_not_believed(fleet: Fleet, tmp_path: Path) -> None:
    """By a stranger's key, which the server's TLS certificate is stolen for; and by a key whose heir is known."""
    config = fleet.config()
    enrolled(config)
    keys = fleet.running.state.keys
    first = keys.current
    fleet.rotate(0.0)
    stranger = signing.generate_key()
    state = AgentState(config.state)
    pinned = state.pinned()
    assert pinned is not None
    for forged in (
        Trust(public_key(stranger), fleet.running.state.ca, (succeed(stranger, signing.generate_key(), 0.0, 1.0),)),
        Trust(public_key(first), fleet.running.state.ca, (_half_signed(first, stranger),)),
    ):
        try:
            extended = pinned.extended(forged)
        except UmbelError:
            continue
        assert extended == pinned
    true = pinned.extended(fleet.running.state.trust)
    forks = Trust(public_key(first), fleet.running.state.ca, (succeed(first, stranger, 0.0, 1e12),))
    assert true.extended(forks) == true
    state.close()


def _half_signed(old: ECKey, new: ECKey) -> object:
    made = succeed(new, old, 0.0, 1.0)
    return type(made)(made.by_new, made.by_new)


def test_news_of_a_key_that_the_server_does_not_have_change_nothing(fleet: Fleet) -> None:
    config = fleet.config()
    fleet.agent(config)
    fleet.running.wait_online(1)
    acks: list[str] = []
    device = fleet.running.server.devices.key(POPULATION, "phone")
    link = ear(fleet, lambda _, token: acks.append(messages.decode(token, messages.Ack, device).command), "ack")
    topic = topics.topic(POPULATION, "phone", "command")
    link.publish(topic, messages.encode(command(Rekey("x" * 43), "news"), fleet.running.state.key))
    assert fleet.report()["state"] == "done"
    assert "news" not in acks
    assert trust_of_running(config).successions == ()
    link.stop()


def test_a_server_that_is_killed_before_it_tells_the_devices_tells_them_when_it_is_back(fleet: Fleet) -> None:
    fleet.agent(fleet.config())
    fleet.running.wait_online(1)
    fleet.running.server.rotation.stop()
    fleet.running.state.keys.begin(7 * DAY, fleet.clock())  # as far as it came
    fleet.restart()
    fleet.wait_confirmed()
    (news,) = [row for row in fleet.running.server.outbox.latest(POPULATION, "phone") if row.kind == "rekey"]
    fleet.restart()
    fleet.running.wait_online(1)
    fleet.running.server.rotation.step()
    assert [row.id for row in fleet.running.server.outbox.latest(POPULATION, "phone") if row.kind == "rekey"] == [
        news.id
    ]


def test_commands_that_wait_are_signed_by_the_key_of_the_day(fleet: Fleet) -> None:
    config = fleet.config()
    enrolled(config)
    asked = {"population": POPULATION, "kind": "report", "devices": ["phone"]}
    waiting = fleet.running.client.post("/v1/commands", asked)
    fleet.rotate(0.0)
    fleet.agent(config)
    (done,) = settled(fleet.running.client, waiting, 30)
    assert done["state"] == "done"


def test_who_sees_one_population_counts_no_others_devices(fleet: Fleet) -> None:
    running = fleet.running
    for device, population in (("a", POPULATION), ("b", "other"), ("c", "other")):
        key, secret = public_key(signing.generate_key()), running.state.enrolment_secret
        running.server.invitations.enrol(EnrolmentRequest(device, "phone", key, secret, population))
    fleet.clock.ahead += 1.0
    fleet.rotate(3600.0)
    made = running.client.post("/v1/admins", {"name": "vera", "role": "viewer", "populations": [POPULATION]})
    viewer = Client(running.state.server_url, made["token"], running.state.context())
    assert [client.get("/v1/keys")[-1]["devices"] for client in (viewer, running.client)] == [1, 3]


def test_who_may_rotate(fleet: Fleet) -> None:
    state = fleet.running.state
    owner = fleet.running.client
    for role, populations, sentence in (
        ("operator", [], "needs the role owner"),
        ("owner", [POPULATION], "an owner of"),
    ):
        made = owner.post(
            "/v1/admins", {"name": f"{role}-{len(populations)}", "role": role, "populations": populations}
        )
        admin = Client(state.server_url, made["token"], state.context())
        with pytest.raises(UmbelError, match=sentence):
            admin.post("/v1/keys/rotate", {"overlap": 3600.0})
        assert len(admin.get("/v1/keys")) == 1
    for overlap in (-1.0, 5.0, 400 * DAY):
        with pytest.raises(UmbelError):
            fleet.rotate(overlap)
    fleet.rotate(3600.0)
    with pytest.raises(UmbelError, match="announced already"):
        fleet.rotate(3600.0)
    assert len(fleet.keys) == 2
    assert [row["outcome"] == "done" for row in owner.get("/v1/audit") if row["action"] == "keys.rotate"] == [
        False,
        True,
        *[False] * 5,
    ]
