"""Every strategy gives through its aggregator what Flower's own class gives from all replies at once."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from tests.memory_grid import MemoryGrid, update, weights
from tests.unit.shared.updates.sample_steps import Int8, Largest
from umbel import UmbelError
from umbel.metrics import Sums
from umbel.tensors import Tensors, WeightSpec, dump
from umbel.updates import Pipeline, Training
from umbel_server.aggregation import Buffers, Update, from_blob, from_weights, robust
from umbel_server.flower import internals
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.strategies import STRATEGIES, make_strategy, state_of
from umbel_server.runs.aggregator import Aggregator, TooFewUpdates, aggregator_of
from umbel_server.storage.blobs import Blobs

NODES = range(1, 22)
OPTIONS: dict[str, dict[str, float]] = {
    "fedprox": {"proximal_mu": 0.5},
    "fedavgm": {"server_learning_rate": 0.7, "server_momentum": 0.9},
    "fedadam": {"eta": 0.05, "beta_1": 0.8},
    "fedtrimmedavg": {"beta": 0.3},
    "krum": {"num_malicious_nodes": 2},
    "multikrum": {"num_malicious_nodes": 3, "num_nodes_to_select": 5},
    "bulyan": {"num_malicious_nodes": 4},
    "qfedavg": {"q": 0.3},
}
ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")
ROUNDS = 3


def pipeline() -> Pipeline:
    return Pipeline([WeightSpec(name, weight.shape, weight.dtype.name) for name, weight in weights().items()])


def metrics_of(node: int) -> Sums:
    return {"loss": 1.0 / node, "auc": [0.1 * node, 3.0, 1.0 / (1 + node)]}


def delta_of(base: Tensors, node: int, number: int) -> Tensors:
    moved = update(base, node, number)
    return {name: moved[name] - weight for name, weight in base.items()}


def examples_of(node: int) -> float:
    return float(10 + 7 * node)


def strategy_of(name: str) -> FedAvg:
    return make_strategy(name, OPTIONS.get(name, {}), 0.1)


def configured(strategy: FedAvg, number: int, base: Tensors) -> list[Message]:
    grid = MemoryGrid({node: lambda message: None for node in NODES})
    messages = list(
        strategy.configure_train(number, flower_messages.array_record(base), ConfigRecord({"epochs": 1}), grid)
    )
    for message in messages:
        internals.give_id(message)
    return sorted(messages, key=lambda message: message.metadata.dst_node_id)


def by_flower(name: str) -> tuple[list[Tensors], list[Sums], FedAvg]:
    strategy, base, history, averages = strategy_of(name), weights(), [], []
    for number in range(1, ROUNDS + 1):
        replies = []
        for message in configured(strategy, number, base):
            node = message.metadata.dst_node_id
            delta = delta_of(base, node, number)
            moved = {name: weight + delta[name] for name, weight in base.items()}
            replies.append(
                flower_messages.reply(message, moved, {"num-examples": examples_of(node), **metrics_of(node)})
            )
        arrays, metrics = strategy.aggregate_train(number, replies)
        assert arrays is not None
        base = {key: array.numpy().astype(np.float32) for key, array in arrays.items()}
        history.append(base)
        averages.append(flower_messages.sums_of(metrics))
    return history, averages, strategy


Load = Callable[[Tensors, Tensors], Update]


def by_umbel(name: str, load: Load, seed: int) -> tuple[list[Tensors], list[Sums], FedAvg]:
    strategy, base, history, averages = strategy_of(name), weights(), [], []
    aggregator = aggregator_of(strategy, pipeline())
    for number in range(1, ROUNDS + 1):
        configured(strategy, number, base)
        aggregator.clear()
        nodes = list(NODES)
        random.Random(seed + number).shuffle(nodes)
        for node in nodes:
            aggregator.fold(f"{node:04}", load(base, delta_of(base, node, number)), examples_of(node), metrics_of(node))
        assert aggregator.count == len(nodes)
        base, metrics = aggregator.finish(number, base)
        history.append(base)
        averages.append(metrics)
    return history, averages, strategy


def stored(blobs: Blobs) -> Load:
    return lambda base, delta: from_blob(pipeline(), blobs, blobs.put(dump(delta)), Buffers())


def in_memory(base: Tensors, delta: Tensors) -> Update:
    return from_weights({name: weight + delta[name] for name, weight in base.items()}, base)


@pytest.mark.parametrize("source", ["blobs", "memory"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_three_rounds_equal_flowers(name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "TILES", 4 * len(NODES) * 5 * 8)  # a tile of four coordinates
    load = stored(Blobs(tmp_path.as_uri())) if source == "blobs" else in_memory
    ours, our_metrics, our_strategy = by_umbel(name, load, seed=1)
    theirs, their_metrics, their_strategy = by_flower(name)
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(weights())
        for key in mine:
            assert mine[key].dtype == np.float32
            if name in ROBUST:  # the same operations on tiles
                np.testing.assert_array_equal(mine[key], other[key], err_msg=key)
            else:  # float32 sums of theirs
                np.testing.assert_allclose(mine[key], other[key], rtol=2e-6, atol=2e-6, err_msg=key)
    for found, expected in zip(our_metrics, their_metrics, strict=True):
        assert found.keys() == expected.keys() == {"loss", "auc"}
        for key in found:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-12)
    state, other_state = state_of(our_strategy), state_of(their_strategy)
    assert state.keys() == other_state.keys()
    for key in state:
        np.testing.assert_allclose(state[key], other_state[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "qfedavg", "fedmedian", "bulyan"])
def test_updates_that_travelled_compressed_are_those_that_they_are_decoded_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "TILES", 4 * len(NODES) * 5 * 8)
    blobs, steps = Blobs(tmp_path.as_uri()), Pipeline(pipeline().specs, [Largest(40), Int8()])

    def sent(base: Tensors, delta: Tensors) -> bytes:
        return steps.encode(delta, Training(base, 1, "seed"))

    def compressed(base: Tensors, delta: Tensors) -> Update:
        return from_blob(steps, blobs, blobs.put(sent(base, delta)), Buffers())

    def decoded(base: Tensors, delta: Tensors) -> Update:
        return stored(blobs)(base, steps.decode_again(sent(base, delta)))

    first, second = by_umbel(name, compressed, seed=1), by_umbel(name, decoded, seed=2)
    assert [dump(tensors) for tensors in first[0]] == [dump(tensors) for tensors in second[0]]


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_order_of_updates_shows(name: str) -> None:
    first, first_metrics, _ = by_umbel(name, in_memory, seed=1)
    second, second_metrics, _ = by_umbel(name, in_memory, seed=2)
    assert [dump(tensors) for tensors in first] == [dump(tensors) for tensors in second]
    assert first_metrics == second_metrics


def folded(name: str, count: int) -> Aggregator:
    strategy, base = strategy_of(name), weights()
    configured(strategy, 1, base)
    aggregator = aggregator_of(strategy, pipeline())
    for node in range(1, count + 1):
        aggregator.fold(str(node), in_memory(base, delta_of(base, node, 1)), 0.5 * node, metrics_of(node))
    return aggregator


@pytest.mark.parametrize("name", STRATEGIES)
def test_too_few_updates_are_one_sentence(name: str) -> None:
    aggregator, least = (folded(name, 18), 19) if name == "bulyan" else (folded(name, 0), 1)
    with pytest.raises(TooFewUpdates, match=rf"^\w+ needs at least {least} updates, {least - 1} were folded"):
        aggregator.finish(1, weights())


@pytest.mark.parametrize("name", ["fedavg", "qfedavg", "krum"])
def test_an_update_is_folded_once_until_the_next_round(name: str) -> None:
    aggregator, base = folded(name, 3), weights()
    again = in_memory(base, delta_of(base, 2, 1))
    with pytest.raises(UmbelError, match="update 2 should be folded once"):
        aggregator.fold("2", again, 1.0, metrics_of(2))
    with pytest.raises(UmbelError, match=r"metrics of an update should be auc\[3\], loss, got loss"):
        aggregator.fold("9", again, 1.0, {"loss": 1.0})
    assert aggregator.count == 3
    aggregator.clear()
    assert aggregator.count == 0
    aggregator.fold("2", again, 1.0, {"loss": 1.0})
    assert aggregator.finish(1, base)[1] == {"loss": 1.0}


def test_fractional_weights_are_those_of_the_mean() -> None:
    base = weights()
    tensors, metrics = folded("fedavg", 4).finish(1, base)
    shares = np.arange(1, 5) / 10
    for name, weight in base.items():
        deltas = np.stack([delta_of(base, node, 1)[name] for node in range(1, 5)]).astype(np.float64)
        expected = weight + np.tensordot(shares, deltas, 1)
        np.testing.assert_allclose(tensors[name], expected, rtol=1e-6, atol=1e-7)
    assert metrics["loss"] == pytest.approx(sum(shares / np.arange(1, 5)))


def trained_and_statistics(name: str, count: int) -> tuple[Aggregator, Tensors, list[Tensors]]:
    """An aggregator that has folded updates of a trained weight and of a moving variance that falls by nine tenths."""
    specs = [WeightSpec("kernel", (2,)), WeightSpec("moving_variance", (2,), trainable=False)]
    base: Tensors = {"kernel": np.float32([1, -1]), "moving_variance": np.float32([1, 0.5])}
    strategy = strategy_of(name)
    configured(strategy, 1, base)
    aggregator = aggregator_of(strategy, Pipeline(specs))
    afters: list[Tensors] = []
    for node in range(1, count + 1):
        after: Tensors = {
            "kernel": base["kernel"] + np.float32(0.01 * node),
            "moving_variance": base["moving_variance"] * np.float32(0.1),
        }
        aggregator.fold(f"{node:04}", from_weights(after, base), 10.0, metrics_of(node))
        afters.append(after)
    return aggregator, base, afters


@pytest.mark.parametrize("name", STRATEGIES)
def test_weights_that_no_gradient_trains_are_averaged_and_not_stepped(name: str) -> None:
    aggregator, base, afters = trained_and_statistics(name, 21)
    moved, _ = aggregator.finish(1, base)
    assert list(moved) == list(base)
    np.testing.assert_allclose(moved["moving_variance"], afters[0]["moving_variance"], rtol=1e-6)
    assert not np.array_equal(moved["kernel"], base["kernel"])


def test_distances_between_updates_leave_statistics_out() -> None:
    specs = [WeightSpec("kernel", (1,)), WeightSpec("moving_mean", (1,), trainable=False)]
    base: Tensors = {"kernel": np.float32([0]), "moving_mean": np.float32([0])}
    strategy = make_strategy("krum", {"num_malicious_nodes": 1}, 0.1)
    configured(strategy, 1, base)
    aggregator = aggregator_of(strategy, Pipeline(specs))
    for node, (kernel, mean) in enumerate([(1.0, 900.0), (1.1, 0.0), (1.2, 500.0), (5.0, 0.1), (9.0, 0.2)]):
        after: Tensors = {"kernel": np.float32([kernel]), "moving_mean": np.float32([mean])}
        aggregator.fold(str(node), from_weights(after, base), 1.0, metrics_of(node + 1))
    np.testing.assert_allclose(aggregator.finish(1, base)[0]["kernel"], [1.1], rtol=1e-6)


def test_q_fedavg_refuses_what_is_no_loss() -> None:
    base, aggregator = weights(), folded("qfedavg", 0)
    for metrics, sentence in (({}, "a number was expected, got None"), ({"loss": -1.0}, "not negative was expected")):
        with pytest.raises(UmbelError, match=sentence):
            aggregator.fold("1", in_memory(base, delta_of(base, 1, 1)), 1.0, metrics)
    assert aggregator.count == 0
