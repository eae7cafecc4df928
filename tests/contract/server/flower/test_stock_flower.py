"""Our ServerApp and ClientApp on stock Flower: a real SuperLink, two real SuperNodes, a real `flwr run`."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from umbel import Plan, tensors
from umbel.examples import load_examples
from umbel.messages import Blob, Train
from umbel.tensors import Tensors
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_server.rounds.policy import RoundPolicy, scalar_fields
from umbel_server.runs.flower_config import policy_of
from umbel_sim.stock_flower import StockFlower

ROOT = Path(__file__).parents[4]
APP = ROOT / "simulations" / "scenarios" / "flower_app"
ROUNDS, EPOCHS, SEED = 2, 3, 11
RUN_SECONDS = 150.0


@pytest.fixture(scope="module")
def plan(plan_of: Callable[[str], Plan]) -> Plan:
    return plan_of("line")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    paths = {}
    for device, points in {"a": [-1.0, 0.0, 1.0, 2.0], "b": [3.0, 4.0]}.items():
        x = np.array(points, np.float32)[:, None]
        paths[device] = folder / f"{device}.npz"
        np.savez(paths[device], x=x, y=2 * x - 1)
    return paths


def trained(plan: Plan, device: str, examples: Path, weights: Tensors, number: int) -> tuple[int, Tensors]:
    how = Train(
        assignment="",
        run="",
        round=number,
        plan=Blob("", 0),
        weights=Blob("", 0),
        deadline=0.0,
        learning_rate=plan.manifest.learning_rate,
        epochs=EPOCHS,
        seed=SEED + number,
    )
    local = load_examples(examples, plan.manifest)
    return local.count, LiteRTTrainer(device).train(plan, weights, local, how, lambda: None).weights


def fedavg(plan: Plan, shards: dict[str, Path], weights: Tensors, number: int) -> Tensors:
    updates = [trained(plan, device, path, weights, number) for device, path in shards.items()]
    total = sum(count for count, _ in updates)
    return {name: sum(count / total * update[name].astype(np.float64) for count, update in updates) for name in weights}


def test_the_app_folder_names_the_whole_round_policy_with_its_defaults() -> None:
    config = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert {name.replace("_", "-") for name in scalar_fields()} <= config.keys()
    assert policy_of(config) == RoundPolicy()


@pytest.mark.timeout(240)
def test_flwr_run_trains_a_plan_on_two_supernodes(plan: Plan, shards: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "checkpoints"
    nodes = [{"plan": str(plan.path), "examples": str(path), "device": name} for name, path in shards.items()]
    config = {"plan": str(plan.path), "output": str(output), "rounds": ROUNDS, "quorum": 2, "epochs": EPOCHS}
    before = set(psutil.pids())
    with StockFlower(tmp_path, nodes) as flower:
        log = flower.run(APP, config | {"seed": SEED}, RUN_SECONDS)

    assert (output / "rounds.json").is_file(), log
    rounds = json.loads((output / "rounds.json").read_bytes())
    assert [(entry["round"], entry["contributors"]) for entry in rounds] == [(1, 2), (2, 2)]
    weights = plan.initial_weights()
    for number in range(1, ROUNDS + 1):
        weights = fedavg(plan, shards, weights, number)
        committed = tensors.load((output / f"round-{number:03}.safetensors").read_bytes())
        assert committed.keys() == weights.keys()
        for name, value in weights.items():
            np.testing.assert_allclose(committed[name], value, rtol=1e-6, atol=1e-7, err_msg=f"round {number}: {name}")
        weights = committed

    left = [p.cmdline() for p in psutil.process_iter() if p.pid not in before and str(tmp_path) in environment(p)]
    assert left == []


def environment(process: psutil.Process) -> str:
    try:
        return process.environ().get("FLWR_HOME", "")
    except psutil.Error:
        return ""
