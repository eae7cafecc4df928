"""Every strategy gives through our round loop what it gives when Flower's own class is applied directly."""

import inspect
import math

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from tests.memory_grid import MemoryGrid, learner, weights
from tests.memory_journal import MemoryJournal
from umbel import UmbelError
from umbel.tensors import Tensors, dump, load
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.strategies import RANGES, STRATEGIES, make_strategy, options_of, restore, state_of
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.grid_port import GridPort
from umbel_server.runs.loop import run_rounds
from umbel_server.runs.run_inputs import RunInputs
from umbel_server.runs.settings import RunSettings

NODES = range(1, 8)
ROUNDS = 3
LEARNING_RATE = 0.1
POLICY = RoundPolicy(deadline=5.0)
ONE = {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
CASES: dict[str, tuple[dict[str, float], FedAvg]] = {
    "fedavg": ({}, flower.FedAvg(**ONE)),
    "fedprox": ({"proximal_mu": 0.5}, flower.FedProx(proximal_mu=0.5, **ONE)),
    "fedavgm": (
        {"server_learning_rate": 0.7, "server_momentum": 0.9},
        flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.9, **ONE),
    ),
    "fedadam": ({"eta": 0.05, "beta_1": 0.8}, flower.FedAdam(eta=0.05, beta_1=0.8, **ONE)),
    "fedyogi": ({"eta": 0.02}, flower.FedYogi(eta=0.02, **ONE)),
    "fedadagrad": ({"tau": 0.01}, flower.FedAdagrad(tau=0.01, **ONE)),
    "fedmedian": ({}, flower.FedMedian(**ONE)),
    "fedtrimmedavg": ({"beta": 0.3}, flower.FedTrimmedAvg(beta=0.3, **ONE)),
    "krum": ({"num_malicious_nodes": 1}, flower.Krum(num_malicious_nodes=1, **ONE)),
    "multikrum": (
        {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
        flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3, **ONE),
    ),
    "bulyan": ({"num_malicious_nodes": 1}, flower.Bulyan(num_malicious_nodes=1, **ONE)),
    "qfedavg": (
        {"q": 0.2},
        flower.QFedAvg(client_learning_rate=LEARNING_RATE, q=0.2, train_loss_key="loss", **ONE),
    ),
}


def through_the_loop(name: str, journal: MemoryJournal, rounds: int = ROUNDS) -> list[Tensors]:
    grid = MemoryGrid({node: learner(node) for node in NODES})
    settings = RunSettings(name, CASES[name][0], rounds, policy=POLICY)
    run_rounds(grid, RunInputs(settings, GridPort(grid, journal), LEARNING_RATE))
    return [commit.weights for commit in journal.commits]


def directly(strategy: FedAvg) -> list[Tensors]:
    grid = MemoryGrid({node: learner(node) for node in NODES})
    current, history = weights(), []
    for number in range(1, ROUNDS + 1):
        config = ConfigRecord({"learning-rate": LEARNING_RATE})
        messages = strategy.configure_train(number, flower_messages.array_record(current), config, grid)
        replies = sorted(grid.send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id)
        arrays, _ = strategy.aggregate_train(number, replies)
        assert arrays is not None
        current = {name: array.numpy().astype(np.float32) for name, array in arrays.items()}
        history.append(current)
    return history


def assert_same(ours: list[Tensors], theirs: list[Tensors]) -> None:
    assert len(ours) == len(theirs) == ROUNDS
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() == weights().keys()
        for name in mine:
            assert mine[name].dtype == np.float32
            # Means are summed in float64, in any order: they may differ by the rounding of Flower's float32 sums.
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_the_round_loop_gives_what_the_strategy_gives_directly(name: str) -> None:
    _, direct = CASES[name]
    ours = through_the_loop(name, MemoryJournal(weights()))
    assert_same(ours, directly(direct))
    assert any(not np.array_equal(ours[0][key], weights()[key]) for key in weights())


def test_every_strategy_has_a_case() -> None:
    assert CASES.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_run_that_goes_on_from_a_checkpoint_equals_one_that_never_stopped(name: str) -> None:
    whole = through_the_loop(name, MemoryJournal(weights()))
    first = MemoryJournal(weights())
    through_the_loop(name, first, rounds=1)
    commit = first.commits[-1]
    assert commit.strategy
    # What a journal stores is safetensors: order and dtypes must survive it.
    rest = MemoryJournal(load(dump(commit.weights)), newest=1, strategy=load(dump(commit.strategy)))
    through_the_loop(name, rest)
    for mine, other in zip([c.weights for c in rest.commits], whole[1:], strict=True):
        for key in other:
            np.testing.assert_array_equal(mine[key], other[key], err_msg=key)


def test_a_fresh_strategy_remembers_nothing() -> None:
    for name, (options, _) in CASES.items():
        strategy = make_strategy(name, options, LEARNING_RATE)
        restore(strategy, {}, list(weights()))
        assert state_of(strategy) == {}


def test_proximal_mu_reaches_the_devices() -> None:
    grid = MemoryGrid({node: learner(node) for node in NODES})
    options = {"proximal_mu": 0.5}
    settings = RunSettings("fedprox", options, rounds=1, epochs=2, max_steps=3, seed=7, policy=POLICY)
    run_rounds(grid, RunInputs(settings, GridPort(grid, MemoryJournal(weights())), LEARNING_RATE))
    assert grid.configs == [
        {
            "learning-rate": LEARNING_RATE,
            "epochs": 2,
            "max-steps": 3,
            "seed": 8,
            "server-round": 1,
            "proximal-mu": 0.5,
        }
    ]


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(UmbelError, match=r"no strategy 'fedsgd'; there are fedavg, .*qfedavg"):
        make_strategy("fedsgd", {}, LEARNING_RATE)


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(UmbelError, match=r"fedavgm has no option 'momentum'; it has .*server_momentum"):
        make_strategy("fedavgm", {"momentum": 0.9}, LEARNING_RATE)
    with pytest.raises(UmbelError, match="fedavg has no option 'beta'; it has none"):
        make_strategy("fedavg", {"beta": 0.1}, LEARNING_RATE)


def test_what_is_ours_to_set_is_no_option() -> None:
    assert options_of("multikrum") == ["num_malicious_nodes", "num_nodes_to_select"]
    with pytest.raises(UmbelError, match="no option 'fraction_train'"):
        make_strategy("fedavg", {"fraction_train": 0.5}, LEARNING_RATE)


def test_a_value_that_the_strategy_refuses_is_one_sentence() -> None:
    with pytest.raises(
        UmbelError, match=r"^strategy fedtrimmedavg: option beta should be .* from 0 to below 0.5, got 0.5$"
    ):
        make_strategy("fedtrimmedavg", {"beta": 0.5}, LEARNING_RATE)


def test_every_option_of_every_strategy_has_a_range_and_its_default_is_in_it() -> None:
    used: set[str] = set()
    for name in STRATEGIES:
        for option in options_of(name):
            used.add(option)
            default = inspect.signature(STRATEGIES[name].__init__).parameters[option].default
            assert default is inspect.Parameter.empty or RANGES[option].holds(default)
    assert used == RANGES.keys()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *(("multikrum", "num_nodes_to_select", value) for value in (0, -1, 2.7, 1e30)),
        *(("krum", "num_malicious_nodes", value) for value in (-1, 0.5)),
        *(("fedadam", "beta_1", value) for value in (-0.1, 1.0)),
        *(("fedadam", option, 0.0) for option in ("eta", "eta_l", "tau")),
        ("fedavgm", "server_learning_rate", 0.0),
        ("fedavgm", "server_momentum", 1.0),
        ("fedprox", "proximal_mu", -1.0),
        ("qfedavg", "client_learning_rate", 0.0),
        ("qfedavg", "q", -1.0),
        *((name, "eta", value) for name in ("fedyogi", "fedadagrad") for value in (math.nan, math.inf, -math.inf)),
    ],
)
def test_an_option_outside_its_range_is_refused_with_the_range(name: str, option: str, value: float) -> None:
    with pytest.raises(
        UmbelError, match=rf"^strategy {name}: option {option} should be a (whole )?number (from|above) .* got "
    ):
        make_strategy(name, {option: value}, LEARNING_RATE)


def test_qfedavg_takes_the_runs_learning_rate_unless_told_otherwise() -> None:
    told = make_strategy("qfedavg", {"client_learning_rate": 0.5}, LEARNING_RATE)
    assert isinstance(told, flower.QFedAvg)
    assert told.client_learning_rate == 0.5
    untold = make_strategy("qfedavg", {}, LEARNING_RATE)
    assert isinstance(untold, flower.QFedAvg)
    assert untold.client_learning_rate == LEARNING_RATE
