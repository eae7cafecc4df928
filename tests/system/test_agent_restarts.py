"""A live agent process that is killed at bad moments: what it had done is not done again, and what comes out is right."""

import random
import resource
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tomli_w

from tests.brokers import EmbeddedProcess
from tests.server_harness import POPULATION, RunningServer
from tests.settled_commands import settled
from tests.tcp_proxy import TcpProxy
from tests.waiting import eventually
from umbel import tensors
from umbel.examples import load_examples
from umbel.messages import Blob, Body, Cancel, Train
from umbel.plan import Plan
from umbel.task import load_task
from umbel.tensors import Tensors
from umbel_edge.device.full_storage import FULL
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_server.compiler import compile_task
from umbel_sim.demo.processes import program
from umbel_sim.digits import load_digits

TASK = """
import keras
from umbel import Task, TensorSpec


def model():
    layers = [keras.layers.Flatten(), keras.layers.Dense(2000, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


task = Task(
    "wide",
    model,
    lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    TensorSpec((8, 8, 1)),
    TensorSpec((), "int32"),
    optimizer=lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    batch_size=16,
)
"""
SLACK = 65_536
"""Bytes sent for each kill beside the upload's own: requests' heads, enrolling again, and what was on its way when it came."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "wide.py").write_text(TASK)
    return compile_task(load_task(folder / "wide.py"), folder / "wide.plan", check=False)


class Phone:
    """A server, a bad link, and an agent process that can be killed and started again."""

    def __init__(self, running: RunningServer, proxy: TcpProxy, folder: Path, plan: Plan) -> None:
        self.running, self.proxy, self.folder = running, proxy, folder
        self.plan = running.server.plans.add(plan.path)
        self.state = folder / "state"
        train, _ = load_digits(0.2, np.random.default_rng(0))
        np.savez(folder / "examples.npz", allow_pickle=False, x=train.x[:200], y=train.y[:200])
        config = {
            "device": "phone",
            "population": POPULATION,
            "kind": "phone",
            "server": proxy.url,
            "enrolment_token": running.state.enrolment_token,
            "examples": "examples.npz",
            "progress_seconds": 0.05,
        }
        (folder / "agent.toml").write_text(tomli_w.dumps(config))
        self.weights = self.plan.initial_weights()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        arguments = [str(self.folder / "agent.toml"), "--log", str(self.folder / "log")]
        self.process = subprocess.Popen([program("umbel-agent"), *arguments])
        self.running.wait_online(1)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.running.wait_online(0)

    def send(self, body: Body) -> str:
        server = self.running.server
        with server.database.transaction() as session:
            command = server.outbox.add(session, POPULATION, "phone", body, 120.0)
        server.exchange.send([command])
        return command.id

    def train(self, **how: object) -> Train:
        server = self.running.server
        weights = self.running.give(server.blobs.put(tensors.dump(self.weights)))
        blob = self.running.give(server.plans.blob(self.plan))
        body = Train(secrets.token_hex(8), "r", 1, blob, weights, time.time() + 120, 0.01, seed=7)
        return msgspec.structs.replace(body, **how)

    def state_of(self, command: str) -> str:
        return self.running.server.outbox.get(command).state

    def update_of(self, command: str) -> Tensors:
        """The update that the server has, once the command is done."""
        eventually(lambda: self.state_of(command) not in ("pending", "accepted"), 60)
        found = self.running.server.outbox.get(command)
        assert found.state == "done", found.reason
        assert found.outcome is not None
        blob = msgspec.convert(found.outcome["update"], Blob)
        return tensors.load(self.running.server.received_blobs.of(command).get(blob.sha256))

    def is_right(self, update: Tensors, body: Train) -> bool:
        """Whether this is what undisturbed training gives, bit for bit."""
        examples = load_examples(self.folder / "examples.npz", self.plan.manifest)
        outcome = LiteRTTrainer("phone").train(self.plan, self.weights, examples, body, lambda: None)
        return all(np.array_equal(outcome.weights[name] - self.weights[name], update[name]) for name in self.weights)

    def leftovers(self) -> list[str]:
        kept = ("*.part", "*.safetensors", "progress.npz", ".*")
        found = [path for pattern in kept for path in self.state.rglob(pattern) if path.is_file()]
        return [str(path.relative_to(self.state)) for path in found if path.parent.name != "personal"]


@pytest.fixture
def phone(tmp_path: Path, plan: Plan) -> Iterator[Phone]:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port, keep_updates=True)
    with TcpProxy(running.state.config.http.port) as proxy:
        made = Phone(running, proxy, tmp_path, plan)
        made.start()
        yield made
        if made.process is not None:
            made.process.kill()
            made.process.wait()
    running.stop()
    broker.stop()


def test_an_agent_that_is_killed_while_it_trains_goes_on_where_it_was(phone: Phone) -> None:
    body = phone.train(epochs=400)
    command = phone.send(body)
    progress = phone.state / "progress.npz"
    eventually(progress.exists)
    received = phone.proxy.received
    for _ in range(2):
        eventually(progress.exists)
        before = progress.stat().st_mtime_ns
        eventually(lambda before=before: progress.exists() and progress.stat().st_mtime_ns != before)
        phone.kill()
        phone.start()
    assert phone.is_right(phone.update_of(command), body)
    resumed = [int(line.split("(")[1].split()[0]) for line in phone.log.splitlines() if "training continues" in line]
    assert len(resumed) == 2
    assert 0 < resumed[0] < resumed[1]
    assert phone.proxy.received - received < SLACK, "the weights came again"
    eventually(lambda: phone.leftovers() == [])


def test_an_agent_that_is_killed_while_it_uploads_sends_the_rest_and_trains_no_more(phone: Phone) -> None:
    body = phone.train(epochs=40)  # not over before the link is slow
    size = len(tensors.dump(phone.weights))
    sent = phone.proxy.sent
    command = phone.send(body)
    eventually((phone.state / "progress.npz").exists)  # all is fetched
    phone.proxy.rate = 50_000  # the upload takes far longer than a new process to come online
    parts = phone.running.state.folder / "uploads"
    for share in (0.2, 0.5):
        eventually(lambda share=share: any(part.stat().st_size > share * size for part in parts.rglob("*.part")))
        phone.kill()
        phone.start()
    phone.proxy.refuse()
    phone.kill()
    phone.proxy.resume()
    phone.start()
    phone.proxy.rate = 0
    assert phone.is_right(phone.update_of(command), body)
    assert phone.log.count("training assignment") == 1
    assert phone.proxy.sent - sent <= size + 3 * SLACK
    eventually(lambda: phone.leftovers() == [])


def test_an_update_that_is_finished_while_the_server_is_away_waits_for_it(phone: Phone) -> None:
    body = phone.train(epochs=20)
    command = phone.send(body)
    eventually(lambda: "training assignment" in phone.log)
    eventually((phone.state / "progress.npz").exists)
    phone.proxy.refuse()
    eventually(lambda: "trying again" in phone.log)
    phone.kill()
    phone.proxy.resume()
    phone.start()
    assert phone.is_right(phone.update_of(command), body)
    assert phone.log.count("training assignment") == 1


def test_a_cancel_is_remembered_across_a_restart_and_leaves_nothing(phone: Phone) -> None:
    long = phone.train(epochs=10**6)
    first = phone.send(long)
    eventually((phone.state / "progress.npz").exists)
    phone.kill()
    phone.send(Cancel(long.assignment))
    phone.start()
    eventually(lambda: phone.state_of(first) == "cancelled")
    eventually(lambda: phone.leftovers() == [])
    later = phone.train()
    cancel = phone.send(Cancel(later.assignment))
    eventually(lambda: phone.state_of(cancel) == "done")
    phone.kill()
    phone.start()
    second = phone.send(later)
    eventually(lambda: phone.state_of(second) == "cancelled")


def test_a_device_without_room_says_so_and_goes_on_when_there_is_some(phone: Phone) -> None:
    warm = phone.send(phone.train())
    assert phone.update_of(warm)
    assert phone.process is not None
    unlimited = resource.prlimit(phone.process.pid, resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    full = phone.send(phone.train())
    eventually(lambda: phone.state_of(full) == "failed")
    assert phone.running.server.outbox.get(full).reason == FULL
    assert phone.leftovers() == []
    resource.prlimit(phone.process.pid, resource.RLIMIT_FSIZE, unlimited)
    body = phone.train(epochs=2)
    assert phone.is_right(phone.update_of(phone.send(body)), body)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_an_agent_that_is_killed_at_any_instant_does_every_command_once(phone: Phone, seed: int) -> None:
    rng = random.Random(seed)
    phone.proxy.rate = 2e6
    bodies = [phone.train(epochs=20, seed=number) for number in range(3)]
    commands = [phone.send(body) for body in bodies]
    while any(phone.state_of(command) in ("pending", "accepted") for command in commands):
        time.sleep(rng.uniform(0.0, 0.8))  # no condition to wait for: any instant is meant
        phone.kill()
        phone.start()
        phone.proxy.cut_after(rng.randrange(400_000))
    assert all(phone.is_right(phone.update_of(command), body) for command, body in zip(commands, bodies, strict=True))
    report = phone.running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    assert settled(phone.running.client, report, 20)[0]["outcome"]["rounds"] == 3
    eventually(lambda: phone.leftovers() == [])
