"""The real agent with a real server and broker: the commands that it executes, and those that it refuses."""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.brokers import EmbeddedProcess, Mosquitto
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, X, config_of
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import messages, signing, tensors, topics
from umbel.errors import UmbelError
from umbel.litert import Predictor
from umbel.messages import Ack, Blob, Body, Cancel, Command, Infer, Report, Result, Train
from umbel.mqtt import Link
from umbel.plan import Plan
from umbel_edge.agent import Agent
from umbel_edge.config import AgentConfig
from umbel_server.runs.settings import RunSettings

PlanOf = Callable[[str], Plan]


@dataclass
class Bench:
    """A server, one agent with the six points of y = 2x - 1, and a listener to the device's answers."""

    running: RunningServer
    config: AgentConfig
    agent: RunningAgent
    ear: Link = field(init=False)
    acks: list[Ack] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def heard(self, topic: str, token: bytes) -> None:
        key = self.running.server.devices.key(POPULATION, "phone")
        if topic.endswith("/ack"):
            self.acks.append(messages.decode(token, Ack, key))
        else:
            self.results.append(messages.decode(token, Result, key))

    def command(self, body: Body, ttl: float = 60.0, device: str = "phone") -> Command:
        now, number = time.time(), self.running.server.outbox.sequence.next()
        return Command(secrets.token_hex(8), POPULATION, device, now, now + ttl, body, sequence=number)

    def send(self, token: bytes) -> None:
        assert self.ear.publish(topics.topic(POPULATION, "phone", "command"), token)

    def ack_of(self, id: str) -> Ack:
        return eventually(
            lambda: next((ack for ack in self.acks if ack.command == id and ack.state != "accepted"), None)
        )

    def ask(self, kind: str, **wanted: object) -> dict[str, object]:
        client = self.running.client
        commands = client.post("/v1/commands", {"population": POPULATION, "kind": kind, **wanted})
        return settled(client, commands, 20)[0]

    def train(self, plan: Plan, **settings: object) -> dict[str, object]:
        wanted = msgspec.convert({"rounds": 2, "policy": {"deadline": 30.0, "attempts": 1}, **settings}, RunSettings)
        id = self.running.server.runs.start(POPULATION, plan.sha256, wanted).id
        eventually(lambda: self.running.server.runs.get(id).state != "running", 40)
        return self.running.client.get(f"/v1/runs/{id}")


@pytest.fixture
def bench(tmp_path: Path, broker: EmbeddedProcess | Mosquitto) -> Iterator[Bench]:
    running = RunningServer(tmp_path / "server", broker.port)
    config = config_of(running, tmp_path / "phone")
    made = Bench(running, config, RunningAgent(config))
    ours = tuple(topics.topic(POPULATION, "phone", channel) for channel in ("ack", "result"))
    made.ear = Link("127.0.0.1", broker.port, "ear", ours, made.heard)
    made.ear.start()
    assert made.ear.wait_up(10)
    running.wait_online(1)
    yield made
    made.agent.stop()
    made.ear.stop()
    running.stop()


def test_a_device_trains_installs_answers_exports_and_reports(bench: Bench, plan_of: PlanOf) -> None:
    plan = bench.running.server.plans.add(plan_of("line").path)
    assert bench.ask("infer", inputs=bench.running.client.put_blob(tensors.dump({"x": X})))["state"] == "failed"
    run = bench.train(plan, rounds=40)
    assert run["state"] == "finished"
    release = bench.running.client.post(f"/v1/runs/{run['id']}/releases")["id"]
    for variant in ("float32", "int8"):
        assert bench.ask("install", release=release, variant=variant)["state"] == "done"
        answer = bench.ask("infer", inputs=bench.running.client.put_blob(tensors.dump({"x": X})))
        address = answer["outcome"]["outputs"]["sha256"]  # type: ignore[index]
        outputs = tensors.load(bench.running.client.get_blob(address))
        assert np.allclose(outputs["output"], 2 * X - 1, atol=0.05)
    exported = bench.ask("export", plan=plan.sha256)
    model = bench.running.client.get_blob(exported["outcome"]["model"]["sha256"])  # type: ignore[index]
    assert np.allclose(Predictor(model)({"x": X})["output"], 2 * X - 1, atol=0.05)
    report = bench.ask("report")["outcome"]
    assert (report["rounds"], report["examples"], report["installed"]) == (40, 6, release)  # type: ignore[index]
    eventually(lambda: bench.running.server.devices.get(POPULATION, "phone").installed == release)


def test_expired_unknown_and_misdirected_commands_are_refused_with_a_reason(bench: Bench) -> None:
    server = bench.running.state.key
    expired, unknown, misdirected = bench.command(Report(), ttl=-5), bench.command(Report()), bench.command(Report())
    bench.send(messages.encode(expired, server))
    assert bench.ack_of(expired.id).state == "expired"
    topic = topics.topic(POPULATION, "phone", "command")
    raw = msgspec.to_builtins(unknown) | {"body": {"type": "dance"}, "topic": topic}
    bench.send(signing.sign_as("command", msgspec.json.encode(raw), server))
    ack = bench.ack_of(unknown.id)
    assert (ack.state, "dance" in ack.reason) == ("rejected", True)
    elsewhere = messages.encode(msgspec.structs.replace(misdirected, device="another"), server)
    # A device complains once a second at most, so the server's sending again is part of it.
    eventually(lambda: bench.send(elsewhere) or misdirected.id in [ack.command for ack in bench.acks])
    assert bench.ack_of(misdirected.id).state == "rejected"
    assert not bench.results


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_forgery_does_not_speak_for_the_command_that_it_names(bench: Bench, first: bool) -> None:
    server, command = bench.running.state.key, bench.command(Report())
    genuine = messages.encode(command, server)
    forgeries = (
        messages.encode(command, signing.generate_key()),
        b"eyJhbGciOiJub25lIn0." + genuine.split(b".")[1] + b".",
        genuine[:-4] + b"AAAA",
    )
    for token in (*forgeries, genuine) if first else (genuine, *forgeries):
        bench.send(token)
    eventually(lambda: bench.results)
    assert bench.ask("report")["state"] == "done"
    assert [result.command for result in bench.results].count(command.id) == 1
    assert command.id not in [ack.command for ack in bench.acks]


def test_a_repeated_command_is_answered_again_but_executed_once(bench: Bench, plan_of: PlanOf) -> None:
    plan = bench.running.server.plans.add(plan_of("line").path)
    weights = Blob.of(tensors.dump(plan.initial_weights()))
    body = Train(
        "a1", "r1", 1, bench.running.give(bench.running.server.plans.blob(plan)), weights, time.time() + 60, 0.05
    )
    token = messages.encode(bench.command(body), bench.running.state.key)
    bench.send(token)
    first = eventually(lambda: bench.results and bench.results[0])
    bench.send(token)
    eventually(lambda: len(bench.results) == 2)
    assert bench.results[1] == first
    assert bench.agent.agent.state.rounds == 1


def test_garbage_on_the_command_topic_changes_nothing(bench: Bench) -> None:
    for junk in (b"", b"\x00\xff" * 500, b"a.b.c", b"{}" * 1000):
        bench.send(junk)
    assert bench.ask("report")["state"] == "done"


def test_training_stops_within_a_batch_when_it_is_cancelled(bench: Bench, plan_of: PlanOf) -> None:
    plan = bench.running.server.plans.add(plan_of("line").path)
    weights = Blob.of(tensors.dump(plan.initial_weights()))
    blob = bench.running.give(bench.running.server.plans.blob(plan))
    long = bench.command(Train("a2", "r1", 1, blob, weights, time.time() + 60, 0.05, epochs=10**9))
    bench.send(messages.encode(long, bench.running.state.key))
    eventually(lambda: any(ack.command == long.id and ack.state == "accepted" for ack in bench.acks))
    cancel = bench.command(Cancel("a2"))
    bench.send(messages.encode(cancel, bench.running.state.key))
    assert bench.ack_of(cancel.id).state == "done"
    assert bench.ack_of(long.id).state == "cancelled"


def test_a_deadline_that_passes_while_training_ends_it(bench: Bench, plan_of: PlanOf) -> None:
    plan = bench.running.server.plans.add(plan_of("line").path)
    weights = Blob.of(tensors.dump(plan.initial_weights()))
    blob = bench.running.give(bench.running.server.plans.blob(plan))
    long = bench.command(Train("a3", "r1", 1, blob, weights, time.time() + 0.5, 0.05, epochs=10**9))
    bench.send(messages.encode(long, bench.running.state.key))
    ack = bench.ack_of(long.id)
    assert (ack.state, "deadline" in ack.reason) == ("failed", True)


def test_what_does_not_fit_is_refused_and_leaves_the_device_as_it_was(bench: Bench, plan_of: PlanOf) -> None:
    server = bench.running.server
    plan = server.plans.add(plan_of("line").path)
    weights, blob = tensors.dump(plan.initial_weights()), bench.running.give(server.plans.blob(plan))
    tampered = bytearray(plan.path.read_bytes())
    tampered[len(tampered) // 2] ^= 1
    unsigned = bench.running.give(server.blobs.put(plan_of("line").path.read_bytes()))

    def trains(plan: Blob, weights: Blob) -> Train:
        return Train("a4", "r1", 1, plan, weights, time.time() + 60, 0.05)

    wrong_shapes = tensors.dump({name: np.zeros((3, 3), np.float32) for name in plan.initial_weights()})
    forged = msgspec.structs.replace(Blob.of(weights), data=weights[:-1] + b"x")
    for body, state, sentence in (
        (trains(bench.running.give(server.blobs.put(bytes(tampered))), Blob.of(weights)), "failed", "changed"),
        (trains(Blob(unsigned.sha256, unsigned.size), Blob.of(weights)), "failed", "not signed"),
        (trains(Blob("0" * 64, 20_000), Blob.of(weights)), "failed", "not on this server"),
        (trains(blob, Blob.of(wrong_shapes)), "rejected", "should be float32"),
        (trains(blob, Blob.of(b"not tensors")), "rejected", "safetensors"),
        (trains(blob, forged), "failed", "digest"),
        (Infer(Blob.of(weights)), "failed", "no release is installed"),
    ):
        command = bench.command(body)
        bench.send(messages.encode(command, bench.running.state.key))
        ack = bench.ack_of(command.id)
        assert (ack.state, sentence in ack.reason) == (state, True), ack
    assert bench.train(plan)["state"] == "finished"


def test_examples_that_do_not_fit_the_plan_are_rejected(bench: Bench, plan_of: PlanOf) -> None:
    np.savez(bench.config.examples, allow_pickle=False, x=np.zeros((4, 7), np.float32), y=np.zeros((4, 1), np.float32))
    plan = bench.running.server.plans.add(plan_of("line").path)
    run = bench.train(plan, rounds=1)
    assert run["state"] == "paused"
    assert "array 'x' should have shape" in str(run["reason"])
    assert {a["state"] for a in run["assignments"]} == {"rejected"}


def test_a_tampered_release_is_not_installed(bench: Bench, plan_of: PlanOf) -> None:
    server = bench.running.server
    plan = server.plans.add(plan_of("line").path)
    run = bench.train(plan)
    good = bench.running.client.post(f"/v1/runs/{run['id']}/releases")["id"]
    assert bench.ask("install", release=good)["state"] == "done"
    install = server.releases.install(good, "float32")
    model = bytearray(server.blobs.get(install.model.sha256))
    model[-1] ^= 1
    other = signing.sign_as(
        "release", signing.verify(install.manifest.encode(), bench.running.state.key), signing.generate_key()
    )
    for wrong in (
        msgspec.structs.replace(install, model=Blob.of(bytes(model))),
        msgspec.structs.replace(install, manifest=other.decode()),
        msgspec.structs.replace(install, release="another"),
    ):
        command = bench.command(wrong)
        bench.send(messages.encode(command, bench.running.state.key))
        assert bench.ack_of(command.id).state == "failed"
    assert bench.ask("report")["outcome"]["installed"] == good  # type: ignore[index]


def test_an_agent_remembers_across_restarts_and_catches_up(bench: Bench, plan_of: PlanOf) -> None:
    plan = bench.running.server.plans.add(plan_of("line").path)
    run = bench.train(plan)
    release = bench.running.client.post(f"/v1/runs/{run['id']}/releases")["id"]
    assert bench.ask("install", release=release)["state"] == "done"
    epoch = bench.running.server.devices.get(POPULATION, "phone").epoch
    bench.agent.stop()
    bench.running.wait_online(0)
    commands = bench.running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    bench.agent = RunningAgent(bench.config)
    (command,) = settled(bench.running.client, commands, 20)
    assert command["state"] == "done"
    assert (command["outcome"]["rounds"], command["outcome"]["installed"]) == (2, release)
    assert bench.running.server.devices.get(POPULATION, "phone").epoch > epoch


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
@pytest.mark.parametrize("protocol", [1, 3])
def test_an_agent_that_meets_another_protocol_says_so_and_ends(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.setattr("umbel_server.api.routes.enrolment.PROTOCOL", protocol)
    other = msgspec.structs.replace(config_of(bench.running, tmp_path / "other"), device="other")
    with pytest.raises(UmbelError, match=rf"speaks protocol {protocol}, this agent 2: upgrade"):
        Agent(other).run()


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_a_device_that_sends_another_key_or_secret_is_not_enrolled(bench: Bench, tmp_path: Path) -> None:
    impostor = config_of(bench.running, tmp_path / "impostor")
    with pytest.raises(UmbelError, match="enrolled with another key"):
        Agent(impostor).run()
    secret, _, pin = impostor.enrolment_token.partition(".")
    wrong_secret = msgspec.structs.replace(impostor, device="x", enrolment_token="x" + secret + "." + pin)
    with pytest.raises(UmbelError, match="not this server's"):
        Agent(msgspec.structs.replace(wrong_secret, state=tmp_path / "s1")).run()
    wrong_pin = msgspec.structs.replace(impostor, device="y", enrolment_token=secret + "." + "A" * 43)
    with pytest.raises(UmbelError, match="another server"):
        Agent(msgspec.structs.replace(wrong_pin, state=tmp_path / "s2")).run()


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_two_agents_cannot_share_a_state_folder_nor_take_a_foreign_one(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match="another umbel-agent uses"):
        Agent(bench.config)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"jpg")
    with pytest.raises(UmbelError, match="expected a new folder"):
        Agent(msgspec.structs.replace(bench.config, state=foreign))
    assert [p.name for p in foreign.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_a_device_that_can_remember_nothing_says_so_to_every_command_and_goes_on(bench: Bench) -> None:
    database = bench.agent.agent.state.database
    pages = database.rows("PRAGMA page_count")[0][0]
    database.rows(f"PRAGMA max_page_count = {pages}")
    states = [str(bench.ask("report", ttl=600)["state"]) for _ in range(30)]
    assert states[-1] == "failed"
    assert bench.acks[-1].reason.startswith("the device's storage is full")
    database.rows("PRAGMA max_page_count = 1000000")
    assert bench.ask("report")["state"] == "done"
