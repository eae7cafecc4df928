"""The simulator against the real parts: the plan, LiteRT, the agents and server of a real fleet, and arithmetic by hand."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg

from tests.brokers import EmbeddedProcess
from tests.compiled_plans import TASKS
from tests.running_agent import RunningAgent
from tests.sampling import sample
from tests.server_harness import POPULATION, RunningServer
from tests.waiting import eventually
from umbel import tensors
from umbel.conditions import Rules
from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_edge.config import AgentConfig
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_server.flower import messages as flower_messages
from umbel_server.runs.settings import RunSettings
from umbel_sim import data as sources
from umbel_sim.engines.litert import litert_engine
from umbel_sim.fleet_data import Fleet, examples_of
from umbel_sim.python_api import settings_of
from umbel_sim.report.result import Result
from umbel_sim.simulation.grid import SimulationGrid
from umbel_sim.simulation.journal import Journal
from umbel_sim.simulation.simulated_port import SimulationPort
from umbel_sim.simulation.simulating import data_of, train
from umbel_sim.simulation.tally import Tally
from umbel_sim.simulation.world import Load, World
from umbel_sim.virtual.availability import Always
from umbel_sim.virtual.classes import mix

PlanOf = Callable[[str], Plan]
DEVICES = 12
POLICIES: dict[str, dict[str, Any]] = {
    "over-selection": {"target": 4, "over_selection": 1.6, "strategy": "fedavg"},
    "late=fold": {"target": 6, "quorum": 2, "over_selection": 1.0, "deadline": 0.3, "late": "fold"},
    "async": {"mode": "async", "buffer": 3, "concurrency": 6},
    "fedadam": {"target": 4, "strategy": "fedadam", "eta": 0.01},
}


@pytest.fixture(scope="module")
def plan(plan_of: PlanOf) -> Plan:
    return plan_of("digits")


@pytest.fixture(scope="module")
def dataset() -> sources.Dataset:
    return sources.load("digits")


def simulated(plan: Plan, dataset: sources.Dataset, **more: Any) -> Result:
    """A few rounds of few steps on slow and different devices, some of which vanish."""
    own = {name: more.pop(name) for name in ("workers", "folder", "told") if name in more}
    given = {
        **{"devices": DEVICES, "partition": "dirichlet:0.5", "rounds": 4, "max_steps": 3, "seed": 5},
        **{"mix": ("phone-low:drop_out=0.1=0.5", "phone-high"), "availability": "always"},
    }
    settings = settings_of({**given, **more})
    return train(plan, plan, data_of(dataset, settings), settings, **own)


def bytes_of(weights: Tensors) -> bytes:
    return tensors.dump(dict(sorted(weights.items())))


def figures(result: Result) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in result.rows]


@pytest.fixture(scope="module")
def whole(plan: Plan, dataset: sources.Dataset) -> Callable[[str], Result]:
    """The uninterrupted simulation of each policy with one worker, made once."""
    made: dict[str, Result] = {}

    def of(name: str) -> Result:
        if name not in made:
            made[name] = simulated(plan, dataset, workers=1, **POLICIES[name])
        return made[name]

    return of


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("workers", sample([2, 3], 2))
def test_checkpoints_do_not_depend_on_the_workers(
    plan: Plan, dataset: sources.Dataset, whole: Callable[[str], Result], name: str, workers: int
) -> None:
    one, other = whole(name), simulated(plan, dataset, workers=workers, **POLICIES[name])
    assert one.state == "finished"
    assert one.updates > 4
    assert bytes_of(one.weights) == bytes_of(other.weights)
    assert figures(one) == figures(other)
    assert one.on_devices == other.on_devices


def test_the_policies_do_what_they_are_for(whole: Callable[[str], Result]) -> None:
    assert sum(row.get("cancelled", 0) for row in whole("over-selection").rows) > 0
    late = whole("late=fold")
    assert any(row["folded"] != 6 for row in late.rows[1:])
    assert sum(row.get("expired", 0) for row in late.rows) == 0
    assert [row["folded"] for row in whole("async").rows[1:]] == [3] * 4


@pytest.mark.parametrize("name", POLICIES)
def test_what_was_interrupted_goes_on_to_the_same_bytes(
    plan: Plan, dataset: sources.Dataset, whole: Callable[[str], Result], tmp_path: Path, name: str
) -> None:
    def stop_at(number: int) -> Callable[[dict[str, Any]], None]:
        def told(row: dict[str, Any]) -> None:
            if row["round"] == number:
                raise KeyboardInterrupt

        return told

    for number in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            simulated(plan, dataset, workers=2, folder=tmp_path, told=stop_at(number), **POLICIES[name])
    again = simulated(plan, dataset, workers=2, folder=tmp_path, **POLICIES[name])
    assert figures(again) == figures(whole(name))
    assert bytes_of(again.weights) == bytes_of(whole(name).weights)
    assert again.participation.tolist() == whole(name).participation.tolist()
    assert again.on_devices == whole(name).on_devices


KILLED = """
import sys
from pathlib import Path

from tests.contract.sim.simulation.test_simulation import POLICIES, simulated
from umbel.plan import Plan
from umbel_sim import data
from umbel_sim.simulation import journal

journal.SAVE_SECONDS = -1.0
told = lambda row: print(row["round"], flush=True)
plan, folder, name = Plan.open(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
simulated(plan, data.load("digits"), workers=2, folder=folder, told=told, **POLICIES[name])
"""


def test_a_killed_simulation_goes_on_to_the_same_bytes(
    plan: Plan, dataset: sources.Dataset, whole: Callable[[str], Result], tmp_path: Path
) -> None:
    root = str(TASKS.parent.parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
    arguments = [sys.executable, "-c", KILLED, str(plan.path), str(tmp_path), "async"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 3:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    first: list[int] = []
    again = simulated(
        plan, dataset, workers=2, folder=tmp_path, told=lambda row: first.append(row["round"]), **POLICIES["async"]
    )
    assert first[0] in (2, 3, 4)  # round 2 was saved before round 3 began
    assert bytes_of(again.weights) == bytes_of(whole("async").weights)
    assert figures(again) == figures(whole("async"))


def test_another_simulations_folder_is_refused(plan: Plan, dataset: sources.Dataset, tmp_path: Path) -> None:
    simulated(plan, dataset, folder=tmp_path, rounds=1)
    simulated(plan, dataset, folder=tmp_path, rounds=2)
    pixels = {"x": dataset.train["x"] * np.float32(0.5), "y": dataset.train["y"]}
    other = sources.Dataset("digits", pixels, dataset.test, dataset.labels, targets=dataset.targets)
    for changed, more in ((dataset, {"seed": 6}), (dataset, {"epochs": 2}), (other, {})):
        with pytest.raises(UmbelError, match="holds another simulation"):
            simulated(plan, changed, folder=tmp_path, rounds=2, **more)


def test_another_trace_in_the_same_file_is_another_simulation(
    plan: Plan, dataset: sources.Dataset, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    head = "device,start,end,online,charging,metered\n"
    trace.write_text(f"{head}0,0,3600,1,1,0\n")
    simulated(plan, dataset, folder=tmp_path / "out", rounds=1, availability=str(trace))
    trace.write_text(f"{head}0,0,3600,1,0,0\n")
    with pytest.raises(UmbelError, match="holds another simulation"):
        simulated(plan, dataset, folder=tmp_path / "out", rounds=2, availability=str(trace))


def test_a_round_is_the_weighted_mean_of_what_keras_makes_of_it(plan_of: PlanOf) -> None:
    """Federated averaging in a few lines of NumPy: a linear neuron, two steps of plain SGD on each of three devices."""
    plan = plan_of("line")
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (8, 1)).astype(np.float32)
    dataset = sources.Dataset("points", {"x": x, "y": 3 * x + 1}, {}, np.repeat(np.arange(3), (4, 2, 2)))
    keyed = sources.Dataset("points", dataset.train, {}, dataset.labels, np.repeat(np.arange(3), (4, 2, 2)))
    settings = settings_of({"devices": 3, "partition": "natural", "rounds": 1, "learning_rate": 0.1, "max_steps": 1})
    made = data_of(keyed, settings)
    result = train(plan, plan, made, settings)
    start = plan.initial_weights()
    kernel, bias = (next(name for name in start if part in name) for part in ("kernel", "bias"))
    total = {name: np.zeros(weight.shape, np.float64) for name, weight in start.items()}
    for device in range(3):
        own = made.fleet.examples(device)
        trainer = LiteRTTrainer(f"device-{device}")
        seen = _first_batch(trainer, plan, start, own, seed=settings.seed + 1)
        error = own["x"][seen] * start[kernel] + start[bias] - own["y"][seen]
        total[kernel] -= len(own["x"]) * 0.1 * 2 * np.mean(error * own["x"][seen])
        total[bias] -= len(own["x"]) * 0.1 * 2 * np.mean(error)
    for name, weight in start.items():
        np.testing.assert_allclose(result.weights[name], weight + total[name] / 8, rtol=1e-5, atol=1e-6)


def _first_batch(trainer: LiteRTTrainer, plan: Plan, start: Tensors, own: Any, seed: int) -> list[int]:
    """The rows that a device's first step trains on."""
    from umbel_edge.training.example_order import next_order, shuffles

    order = next_order(shuffles(seed, trainer.device), len(own["x"]))
    return [int(row) for row in order[: plan.manifest.batch_size]]


def test_a_virtual_device_makes_the_update_that_an_agents_trainer_makes(plan: Plan, dataset: sources.Dataset) -> None:
    settings = settings_of({"devices": 5, "partition": "shards:2", "rounds": 1, "epochs": 2, "seed": 9, "target": 1})
    made = data_of(dataset, settings)
    result = train(plan, plan, made, settings)
    (device,) = np.flatnonzero(result.participation)
    own = made.fleet.examples(int(device))
    how = Train("a", "r", 1, Blob("", 0), Blob("", 0), 0.0, learning_rate=0.1, epochs=2, seed=10)
    outcome = LiteRTTrainer(f"device-{device}").train(
        plan, plan.initial_weights(), Examples(dict(own), len(own["x"])), how, lambda: None
    )
    start = plan.initial_weights()
    delta = {name: outcome.weights[name] - start[name] for name in start}
    for name, weight in start.items():
        # One update's mean is itself: base and delta are added once.
        assert result.weights[name].tobytes() == (weight + delta[name]).tobytes()


@pytest.fixture
def fleet_of_agents(tmp_path: Path) -> Iterator[Callable[[Fleet, int], RunningServer]]:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path / "server", broker.port)
    agents: list[RunningAgent] = []

    def started(fleet: Fleet, count: int) -> RunningServer:
        for device in range(count):
            folder = tmp_path / f"device-{device}"
            folder.mkdir()
            np.savez(folder / "examples.npz", **fleet.examples(device))  # type: ignore[arg-type]
            token = running.state.enrolment_token
            config = AgentConfig(
                f"device-{device}",
                POPULATION,
                "phone",
                running.state.server_url,
                folder / "examples.npz",
                folder / "state",
                token,
            )
            agents.append(RunningAgent(config))
        running.wait_online(count)
        return running

    yield started
    for agent in agents:
        agent.stop()
    running.stop()
    broker.stop()


@pytest.mark.parametrize("strategy", sample(["fedavg", "fedprox", "fedadam"], "fedavg"))
def test_a_real_fleet_trains_to_the_same_bytes(
    plan: Plan,
    dataset: sources.Dataset,
    fleet_of_agents: Callable[[Fleet, int], RunningServer],
    strategy: str,
) -> None:
    """Three agents, a server, MQTT and HTTP on one side, virtual devices of the same names and examples on the other."""
    options = {"proximal_mu": 0.1} if strategy == "fedprox" else {}
    settings = settings_of(
        {
            **{"devices": 3, "partition": "dirichlet:0.5", "rounds": 3, "epochs": 2, "max_steps": 7, "seed": 4},
            **{"strategy": strategy, "quorum": 3, **options},
        }
    )
    made = data_of(dataset, settings)
    running = fleet_of_agents(made.fleet, 3)
    stored = running.server.plans.add(plan.path)
    policy = {"quorum": 3, "over_selection": 1.0, "deadline": 30.0}
    wanted = {"strategy": strategy, "options": options, "rounds": 3, "epochs": 2, "max_steps": 7, "seed": 4}
    run = running.server.runs.start(
        POPULATION, stored.sha256, msgspec.convert({**wanted, "policy": policy}, RunSettings)
    ).id
    eventually(lambda: running.server.runs.get(run).state != "running", 60)
    shown = running.client.get(f"/v1/runs/{run}")
    assert shown["state"] == "finished", shown["reason"]
    real = tensors.load(running.server.blobs.get(running.server.runs.checkpoint(run).weights))
    result = train(plan, plan, made, settings, workers=2)
    assert bytes_of(real) == bytes_of(result.weights)
    for checkpoint, row in zip(shown["checkpoints"][1:], result.rows[1:], strict=True):
        assert checkpoint["fleet_metrics"]["loss"] == pytest.approx(row["train_loss"], rel=1e-6)


@pytest.fixture
def foreign(plan: Plan, dataset: sources.Dataset) -> Iterator[Callable[..., SimulationGrid]]:
    """A grid for a ServerApp that is not Umbel's."""
    engines = []

    def made(*classes: str, rate: float = 0.1) -> SimulationGrid:
        settings = settings_of({"devices": 4, "mix": classes, "learning_rate": rate})
        own = data_of(dataset, settings)
        engine = litert_engine(plan, own.fleet, 2)
        engines.append(engine)
        tally = Tally(4, tuple(plan.manifest.metrics))
        world = World(0, 4, mix(classes), Always(), Rules())
        journal = Journal("", tally, lambda weights: {}, lambda weights, devices: [])
        port = SimulationPort(world, Load.of(plan), own.fleet, plan, engine, journal, tally)
        return SimulationGrid(port, settings.run_settings())

    yield made
    for engine in engines:
        engine.close()


def instructions(grid: SimulationGrid, weights: Tensors, number: int, rate: float = 0.1) -> list[Message]:
    record = flower_messages.array_record(weights)
    config = ConfigRecord({"server-round": number, "max-steps": 2, "learning-rate": rate})
    content = RecordDict({"arrays": record, "config": config})
    return [grid.create_message(content, MessageType.TRAIN, node, str(number)) for node in grid.get_node_ids()]


def averaged(replies: list[Message]) -> Tensors:
    found = [flower_messages.tensors_of(reply.content.array_records["arrays"]) for reply in replies]
    return {
        name: np.mean([one[name] for one in found], axis=0, dtype=np.float64).astype(np.float32) for name in found[0]
    }


def test_another_server_apps_loop_sends_and_receives(foreign: Callable[..., SimulationGrid], plan: Plan) -> None:
    def rounds(grid: SimulationGrid) -> Tensors:
        weights = plan.initial_weights()
        for number in (1, 2):
            replies = list(grid.send_and_receive(instructions(grid, weights, number)))
            assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3, 4]
            assert all(reply.content.metric_records["metrics"]["num-examples"] > 300 for reply in replies)
            weights = averaged(replies)
        return weights

    grid = foreign("even")
    first = rounds(grid)
    assert grid.port.now > 0
    assert bytes_of(first) == bytes_of(rounds(foreign("even")))
    assert bytes_of(first) != bytes_of(plan.initial_weights())


def test_another_server_apps_loop_pushes_and_pulls(foreign: Callable[..., SimulationGrid], plan: Plan) -> None:
    grid = foreign("phone-low:spread=1")
    ids = list(grid.push_messages(instructions(grid, plan.initial_weights(), 1)))
    pulled, times = [], []
    while len(pulled) < 4:
        replies = list(grid.pull_messages(ids))
        assert replies
        pulled += replies
        times.append(grid.port.now)
    assert times == sorted(times)
    assert len(set(times)) == 4
    assert sorted(reply.metadata.reply_to_message_id for reply in pulled) == sorted(ids)
    assert list(grid.pull_messages(ids)) == []


def test_devices_that_vanish_are_errors_after_their_time_and_always_the_same(
    foreign: Callable[..., SimulationGrid], plan: Plan
) -> None:
    seen = []
    for _ in range(2):
        grid = foreign("even:drop_out=0.5")
        outcomes = []
        for number in range(1, 4):
            replies = list(grid.send_and_receive(instructions(grid, plan.initial_weights(), number), timeout=50.0))
            assert len(replies) == 4
            outcomes.append([reply.has_error() for reply in replies])
            if any(outcomes[-1]):
                assert grid.port.now == pytest.approx(50.0 * number, abs=50.0)
        seen.append(outcomes)
    assert seen[0] == seen[1]
    assert {True, False} == {one for outcomes in seen[0] for one in outcomes}


def test_flowers_own_loop_trains_and_evaluates(foreign: Callable[..., SimulationGrid], plan: Plan) -> None:
    grid = foreign("even")
    strategy = FedAvg(weighted_by_key="num-examples", min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4)
    initial = flower_messages.array_record(plan.initial_weights())
    result = strategy.start(grid, initial, num_rounds=2, train_config=ConfigRecord({"max-steps": 20}))
    losses = [result.evaluate_metrics_clientapp[number]["loss"] for number in (1, 2)]
    assert losses[1] < losses[0]
    assert 0 <= result.evaluate_metrics_clientapp[2]["accuracy"] <= 1
    assert bytes_of(flower_messages.tensors_of(result.arrays)) != bytes_of(plan.initial_weights())


def test_an_evaluation_is_the_agents_and_takes_its_time(foreign: Callable[..., SimulationGrid], plan: Plan) -> None:
    grid = foreign("even:drop_out=0.4")
    content = RecordDict({"arrays": flower_messages.array_record(plan.initial_weights()), "config": ConfigRecord()})
    messages = [grid.create_message(content, MessageType.EVALUATE, node, "1") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=50.0))
    assert len(replies) == 4
    assert {reply.has_error() for reply in replies} == {True, False}
    assert grid.port.now == 50.0  # one vanished
    trainer = LiteRTTrainer("")
    specs = {**plan.manifest.inputs, **plan.manifest.targets}
    for reply in (reply for reply in replies if not reply.has_error()):
        examples = examples_of(grid.port.fleet, reply.metadata.src_node_id - 1, specs)
        expected = trainer.evaluate(plan, plan.initial_weights(), examples, lambda: None)
        assert reply.content.metric_records["metrics"] == {"num-examples": examples.count, **expected}


def test_another_server_apps_mistakes_are_sentences(foreign: Callable[..., SimulationGrid], plan: Plan) -> None:
    grid = foreign("even")
    content = RecordDict({"arrays": flower_messages.array_record(plan.initial_weights()), "config": ConfigRecord()})
    with pytest.raises(UmbelError, match="a simulation's nodes train and evaluate; a query"):
        grid.push_messages([grid.create_message(content, MessageType.QUERY, 1, "1")])
    with pytest.raises(UmbelError, match="node 9 is not one of the simulation's, 1 to 4"):
        grid.push_messages([grid.create_message(content, MessageType.TRAIN, 9, "1")])
    broken = {name: np.full_like(weight, np.nan) for name, weight in plan.initial_weights().items()}
    with pytest.raises(UmbelError, match=r"round 7: device-\d cannot train: the weights to start from"):
        list(grid.send_and_receive(instructions(grid, broken, 7)))
    grid = foreign("even")
    with pytest.raises(UmbelError, match=r"round 8: the loss of device-\d is (nan|inf)"):
        list(grid.send_and_receive(instructions(grid, plan.initial_weights(), 8, rate=1e30)))
