"""The bytes of an update, pinned for every program that makes one: the agent with each trainer, the Flower app, the simulator.

One step of plain SGD on two points of y = 2x - 1, from weights and with a learning rate that leave nothing to round:
every runtime computes the same numbers. The digests are those of the first release.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from sqlalchemy import select

from tests.compiled_plans import TASKS
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.waiting import eventually
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel.tensors import Tensors, digest, dump
from umbel_edge.flower_app import app
from umbel_server.flower import internals
from umbel_server.flower import messages as flower_messages
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.database import Assignment
from umbel_sim.data import FunctionFleet
from umbel_sim.engines import Engine, Job
from umbel_sim.engines.litert import litert_engine
from umbel_sim.engines.xla import XLAEngine
from umbel_sim.tasks import line

X = np.float32([[1.0], [3.0]])
EXAMPLES = {"x": X, "y": 2 * X - 1}
RATE = 0.25
UPDATE = "2b075ad974b0467b957ae4091bcde193728d3355c528009d1771fb23f492eacf"
"""The digest of the update as safetensors: kernel 2.5, bias 0.875."""
WEIGHTS = "cb27ad41e8a0812508f86f84b18ef84b9ed22bface98aa8b346006b9e4b0a4e8"
"""The digest of the weights after training as safetensors: kernel 3, bias 1.125."""


@pytest.fixture(scope="module")
def plan(plan_of: Callable[[str], Plan]) -> Plan:
    return plan_of("line")


@pytest.fixture(scope="module")
def start(plan: Plan) -> Tensors:
    values = {(1, 1): 0.5, (1,): 0.25}
    return {spec.name: np.full(spec.shape, values[spec.shape], np.float32) for spec in plan.manifest.weights}


@pytest.mark.parametrize("trainer", ["litert", "keras"])
def test_of_the_agent(trainer: str, running: RunningServer, plan: Plan, start: Tensors, tmp_path: Path) -> None:
    config = config_of(running, tmp_path / "phone")
    np.savez(config.examples, allow_pickle=False, **EXAMPLES)
    if trainer == "keras":
        config = msgspec.structs.replace(config, trainer="keras", task=TASKS / "line.py")
    agent = RunningAgent(config)
    try:
        running.wait_online(1)
        server = running.server
        settings = RunSettings(rounds=1, learning_rate=RATE, policy=RoundPolicy(deadline=30.0, attempts=1))
        weights = running.give(server.blobs.put(dump(start)))
        run = server.runs.start(POPULATION, server.plans.add(plan.path).sha256, settings, weights.sha256).id
        eventually(lambda: server.runs.get(run).state != "running", 40)
        with server.database.transaction() as session:
            assert session.scalars(select(Assignment.update).where(Assignment.run == run)).all() == [UPDATE]
    finally:
        agent.stop()


def test_of_the_flower_app(plan: Plan, start: Tensors, tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", allow_pickle=False, **EXAMPLES)
    internals.set_identity()
    config = ConfigRecord({"learning-rate": RATE, "epochs": 1})
    message = Message(
        RecordDict({"arrays": flower_messages.array_record(start), "config": config}), 7, MessageType.TRAIN
    )
    internals.give_id(message)
    node = {"plan": str(plan.path), "examples": str(tmp_path / "points.npz")}
    reply = app(message, Context(1, 7, node, RecordDict(), {}))
    after = flower_messages.tensors_of(reply.content.array_records["arrays"])
    assert digest(dump(after)) == WEIGHTS


@pytest.mark.parametrize("engine", ["litert", "xla"])
def test_of_the_simulator(engine: str, plan: Plan, start: Tensors) -> None:
    fleet = FunctionFleet(lambda device: EXAMPLES, 1, lambda device: len(X))
    nowhere = Blob("0" * 64, 1)
    how = Train("0" * 16, "run", 1, nowhere, nowhere, 0.0, learning_rate=RATE)
    made: Engine = litert_engine(plan, fleet, 1) if engine == "litert" else XLAEngine(line.task, plan, fleet)
    try:
        done = made.submit(Job(0, "device-0", start, how)).result(60)
    finally:
        made.close()
    assert digest(dump(done.delta)) == UPDATE
