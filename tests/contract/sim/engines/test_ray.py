"""Real Rays: our engine in one of this process and in a cluster that was there, and Flower's own simulation in its own."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from tests.waiting import eventually
from umbel import Plan, tensors
from umbel.errors import UmbelError
from umbel.messages import Blob, Train
from umbel_sim.data import FunctionFleet
from umbel_sim.data.dataset import Dataset
from umbel_sim.demo.processes import free_port, program
from umbel_sim.engines import Done, Job
from umbel_sim.engines.litert import litert_engine
from umbel_sim.engines.ray_cluster import GUARDED, QUIET, Cluster, join, new_folder
from umbel_sim.example_files import write_examples
from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions import partition
from umbel_sim.python_api import simulate
from umbel_sim.stock_flower import StockFlower

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[4]
APP = ROOT / "simulations" / "scenarios" / "flower_app"
TASK = ROOT / "simulations" / "umbel_sim" / "tasks" / "line.py"
DEVICES, SEED = 4, 7
Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def plan(plan_of: Callable[[str], Plan]) -> Plan:
    return plan_of("line")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray of this process, which the tests' engines do not end."""
    before = running()
    joined = join("local", 2)
    started = running() - before
    assert {"raylet", "gcs_server"} <= {process.name() for process in started}
    yield Cluster(joined.address, joined.workers, lambda: None)
    left = running() - before
    joined.leave()
    assert ended(started | left) == []


def running() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def ended(processes: set[psutil.Process]) -> list[str]:
    """What of these is still there a while later."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return [repr(process) for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def line(device: int) -> Arrays:
    x = np.random.default_rng(device).normal(size=(device + 1, 1)).astype(np.float32)
    return {"x": x, "y": 2 * x - 1}


def shifted() -> Fleet:
    x = np.random.default_rng(SEED).normal(size=(40, 1)).astype(np.float32)
    return partition("shift:0.3", Dataset("line", {"x": x, "y": 2 * x - 1}, {}, np.zeros(40, np.int64)), DEVICES, SEED)


def jobs(plan: Plan) -> list[Job]:
    weights = plan.initial_weights()
    how = Train("", "", 1, Blob("", 0), Blob("", 0), 0.0, plan.manifest.learning_rate, epochs=3, seed=SEED)
    return [Job(device, f"device-{device}", weights, how) for device in range(DEVICES)]


def trained(engine: Any, plan: Plan) -> list[tuple[Any, ...]]:
    try:
        return [exact(future.result(60)) for future in [engine.submit(job) for job in jobs(plan)]]
    finally:
        engine.close()


def exact(done: Done) -> tuple[Any, ...]:
    delta = {name: (tensor.dtype, tensor.shape, tensor.tobytes()) for name, tensor in done.delta.items()}
    return delta, done.metrics, done.examples


@pytest.mark.parametrize("fleet", [shifted(), FunctionFleet(line, DEVICES)], ids=["rows", "function"])
def test_actors_send_what_the_agents_trainer_makes_bit_for_bit(plan: Plan, cluster: Cluster, fleet: Fleet) -> None:
    from umbel_sim.engines.ray_workers import RayEngine

    engine = RayEngine(plan, fleet, cluster)
    assert engine.workers == 2
    assert trained(engine, plan) == trained(litert_engine(plan, fleet, 2), plan)


@pytest.mark.long
def test_a_worker_that_dies_is_replaced_and_one_that_always_dies_is_given_up(
    plan: Plan, cluster: Cluster, tmp_path: Path
) -> None:
    from umbel_sim.engines.ray_workers import RayEngine

    def dies(device: int) -> Arrays:
        if device == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return line(device)

    def always(device: int) -> Arrays:
        if device == 1:
            with (tmp_path / "deaths").open("a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if device == 2:
            raise UmbelError("device 2 has no examples")
        return line(device)

    expected = trained(litert_engine(plan, FunctionFleet(line, DEVICES), 1), plan)
    assert trained(RayEngine(plan, FunctionFleet(dies, DEVICES), cluster), plan) == expected
    assert (tmp_path / "died").exists()

    engine = RayEngine(plan, FunctionFleet(always, DEVICES), cluster)
    try:
        futures = [engine.submit(job) for job in jobs(plan)]
        with pytest.raises(UmbelError, match="the worker that trained device-1 died 3 times"):
            futures[1].result(60)
        with pytest.raises(UmbelError, match=r"^device 2 has no examples$"):
            futures[2].result(60)
        assert [exact(futures[device].result(60)) for device in (0, 3)] == [expected[0], expected[3]]
        assert (tmp_path / "deaths").read_text() == "xxx"
    finally:
        engine.close()


@pytest.mark.long
def test_what_cannot_be_sent_and_more_workers_than_cores_are_one_sentence(plan: Plan, cluster: Cluster) -> None:
    from umbel_sim.engines.ray_workers import RayEngine

    lock = threading.Lock()
    unpicklable = FunctionFleet(lambda device: line(device) if lock else {}, DEVICES)
    with pytest.raises(UmbelError, match="the fleet cannot be sent to Ray's workers"):
        RayEngine(plan, unpicklable, cluster)
    with pytest.raises(UmbelError, match="has 2 processor cores and 3 workers were wanted; lower --workers"):
        join("local", 3)


@pytest.mark.long
def test_umbel_simulate_joins_a_cluster_and_leaves_it_running(tmp_path: Path) -> None:
    write_examples(FunctionFleet(lambda device: line(40), 1), tmp_path)
    port, folder = free_port(), new_folder()
    head = [program("ray"), "start", "--head", "--block", "--port", str(port), "--num-cpus", "1", "--temp-dir", folder]
    clean = {name: value for name, value in os.environ.items() if name not in GUARDED} | QUIET
    before = running()
    with (tmp_path / "ray.log").open("wb") as log:
        ray = subprocess.Popen([*head, "--include-dashboard", "false"], env=clean, stdout=log, stderr=log)
    started: set[psutil.Process] = set()
    try:
        eventually(lambda: "Ray runtime started" in (tmp_path / "ray.log").read_text(), 60)
        command = [
            program("umbel"),
            "simulate",
            str(TASK),
            "--data",
            str(tmp_path / "0.npz"),
            "--devices",
            "5",
            "--json",
        ]
        command += [
            "--rounds",
            "2",
            "--output",
            str(tmp_path / "out"),
            "--engine",
            "ray",
            "--address",
            f"127.0.0.1:{port}",
        ]
        done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        started = running() - before
        assert {"raylet", "gcs_server"} <= {process.name() for process in started}
    finally:
        ray.terminate()
        ray.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    assert ended(started) == []
    with_ray = json.loads(done.stdout)
    assert (with_ray["engine"], with_ray["workers"]) == ("ray", 1)
    without = simulate(TASK, str(tmp_path / "0.npz"), devices=5, rounds=2, workers=1).summary()
    differ = {name for name in without if with_ray[name] != json.loads(json.dumps(without[name]))}
    assert differ <= {"engine", "why_engine", "wall_seconds", "updates_per_second"}


@pytest.mark.long
def test_flowers_own_simulation_trains_the_plan_on_partitions(plan: Plan, tmp_path: Path) -> None:
    fleet = FunctionFleet(line, DEVICES)
    write_examples(fleet, tmp_path / "examples")
    output = tmp_path / "checkpoints"
    config = {"plan": str(plan.path), "examples": str(tmp_path / "examples" / "{partition}.npz"), "output": str(output)}
    config |= {"rounds": 1, "quorum": DEVICES, "epochs": 3, "seed": SEED - 1}
    # One actor: each imports all that Flower does.
    simulation = {"num-supernodes": DEVICES, "client-resources-num-cpus": 1, "init-args-num-cpus": 1}
    before = running()
    with StockFlower(tmp_path, simulation=simulation) as flower:
        log = flower.run(APP, config, 120.0)
        left = running() - before
    assert ended(left) == []

    rounds = json.loads((output / "rounds.json").read_bytes())
    assert [(entry["round"], entry["contributors"]) for entry in rounds] == [(1, DEVICES)], log
    engine = litert_engine(plan, fleet, 1)
    updates = [engine.submit(job).result(60) for job in jobs(plan)]
    engine.close()
    total = sum(done.examples for done in updates)
    committed = tensors.load((output / "round-001.safetensors").read_bytes())
    for name, weight in plan.initial_weights().items():
        mean = weight + sum(done.examples / total * done.delta[name].astype(np.float64) for done in updates)
        np.testing.assert_allclose(committed[name], mean, rtol=1e-6, atol=1e-7, err_msg=name)
