"""The Flower ClientApp as a function: a message in, a reply out."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from umbel import Plan, UmbelError
from umbel.tensors import Tensors
from umbel_edge.flower_app import app
from umbel_server.flower import internals
from umbel_server.flower import messages as flower_messages

Config = dict[str, bool | float | int | str]


@pytest.fixture(scope="module")
def plan(plan_of: Callable[[str], Plan]) -> Plan:
    return plan_of("line")


@pytest.fixture
def node(plan: Plan, tmp_path: Path) -> Config:
    store(tmp_path / "examples.npz", [1.0, 2.0, 3.0])
    return {"plan": str(plan.path), "examples": str(tmp_path / "examples.npz"), "device": "a"}


def store(path: Path, points: list[float]) -> None:
    x = np.array(points, np.float32)[:, None]
    np.savez(path, x=x, y=2 * x - 1)


def ask(
    kind: str, node: Config, weights: Tensors, config: Mapping[str, float] | None = None, run: Config | None = None
) -> RecordDict:
    internals.set_identity()
    content = RecordDict({"arrays": flower_messages.array_record(weights), "config": ConfigRecord(dict(config or {}))})
    message = Message(content, 7, kind)
    internals.give_id(message)
    reply = app(message, Context(1, 7, node, RecordDict(), run or {}))
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    return reply.content


def test_training_answers_with_all_weights_in_the_order_they_came(plan: Plan, node: Config) -> None:
    weights = plan.initial_weights()
    for sent in (weights, dict(reversed(weights.items()))):
        content = ask(MessageType.TRAIN, node, sent, {"epochs": 200, "learning-rate": 0.05, "seed": 3})
        arrays = flower_messages.tensors_of(content.array_records["arrays"])
        assert list(arrays) == list(sent)
        kernel, bias = (value.item() for _, value in sorted(arrays.items(), reverse=True))
        assert kernel * 10 + bias == pytest.approx(19, abs=0.1)
        metrics = content.metric_records["metrics"]
        assert metrics["num-examples"] == 3
        assert metrics.keys() == {"num-examples", "loss"}


def test_the_same_seed_gives_the_same_weights_and_another_device_others(plan: Plan, node: Config) -> None:
    def kernel(device: str, seed: int) -> float:
        content = ask(MessageType.TRAIN, node | {"device": device}, plan.initial_weights(), {"seed": seed, "epochs": 9})
        return float(sum(array.numpy().sum() for array in content.array_records["arrays"].values()))

    first = kernel("a", 5)
    assert kernel("a", 5) == first
    assert {kernel("b", 5), kernel("a", 6), kernel("c", 7)} != {first}


def test_max_steps_and_the_proximal_term_are_obeyed(plan: Plan, node: Config) -> None:
    weights = plan.initial_weights()

    def distance(config: Mapping[str, float]) -> float:
        arrays = ask(MessageType.TRAIN, node, weights, config).array_records["arrays"]
        return float(sum(np.abs(array.numpy() - weights[name]).sum() for name, array in arrays.items()))

    free = distance({"epochs": 20})
    assert 0 < distance({"epochs": 20, "max-steps": 1}) < free
    assert 0 < distance({"epochs": 20, "proximal-mu": 5.0}) < free


def test_evaluation_answers_with_metrics_alone(plan: Plan, node: Config) -> None:
    weights = {name: np.zeros_like(weight) for name, weight in plan.initial_weights().items()}
    content = ask(MessageType.EVALUATE, node, weights)
    assert not content.array_records
    assert content.metric_records["metrics"]["loss"] == pytest.approx((1 + 9 + 25) / 3)
    assert content.metric_records["metrics"]["num-examples"] == 3


def test_examples_that_change_are_read_again(plan: Plan, node: Config) -> None:
    ask(MessageType.EVALUATE, node, plan.initial_weights())
    store(Path(str(node["examples"])), [1.0, 2.0, 3.0, 4.0, 5.0])
    content = ask(MessageType.EVALUATE, node, plan.initial_weights())
    assert content.metric_records["metrics"]["num-examples"] == 5


def test_what_is_missing_or_wrong_is_one_sentence(plan: Plan, node: Config, tmp_path: Path) -> None:
    weights = plan.initial_weights()
    with pytest.raises(UmbelError, match="the node's plan is missing: start it with --node-config"):
        ask(MessageType.TRAIN, {}, weights)
    with pytest.raises(UmbelError, match="the node's examples should be a file"):
        ask(MessageType.TRAIN, node | {"examples": str(tmp_path / "none.npz")}, weights)
    with pytest.raises(UmbelError, match="threads should be a number, got 'two'"):
        ask(MessageType.TRAIN, node | {"threads": "two"}, weights)
    with pytest.raises(UmbelError, match="is missing"):
        ask(MessageType.TRAIN, node, dict(list(weights.items())[:1]))


def test_a_simulated_node_has_the_runs_plan_and_its_partition_of_the_examples(plan: Plan, tmp_path: Path) -> None:
    for number in range(2):
        store(tmp_path / f"{number}.npz", [1.0] * (number + 1))
    run: Config = {"plan": str(plan.path), "examples": str(tmp_path / "{partition}.npz")}
    weights = plan.initial_weights()
    for number in (1, 0, 1):
        node: Config = {"partition-id": number, "num-partitions": 2}
        content = ask(MessageType.TRAIN, node, weights, run=run)
        assert content.metric_records["metrics"]["num-examples"] == number + 1
        own: Config = {
            "plan": str(plan.path),
            "examples": str(tmp_path / f"{number}.npz"),
            "device": f"device-{number}",
        }
        assert trained(content) == trained(ask(MessageType.TRAIN, own, weights))


def test_a_run_chooses_files_of_simulated_nodes_alone_and_one_for_each(
    plan: Plan, node: Config, tmp_path: Path
) -> None:
    weights = plan.initial_weights()
    run: Config = {"plan": "another.plan", "examples": str(tmp_path / "{partition}.npz")}
    content = ask(MessageType.TRAIN, node | {"partition-id": 1, "num-partitions": 2}, weights, run=run)
    assert content.metric_records["metrics"]["num-examples"] == 3
    with pytest.raises(UmbelError, match="the node's examples is missing"):
        ask(MessageType.TRAIN, {"plan": node["plan"], "partition-id": 1, "num-partitions": 2}, weights, run=run)
    simulated: Config = {"partition-id": 1, "num-partitions": 2}
    with pytest.raises(
        UmbelError, match=r"simulated nodes need --run-config .* a file for each of 2 partitions; got ''"
    ):
        ask(MessageType.TRAIN, simulated, weights, run={"plan": node["plan"], "examples": ""})


def trained(content: RecordDict) -> dict[str, bytes]:
    weights = flower_messages.tensors_of(content.array_records["arrays"])
    return {name: weight.tobytes() for name, weight in weights.items()}
