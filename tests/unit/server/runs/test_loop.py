import math
import re
from collections.abc import Callable
from itertools import count

import msgspec
import numpy as np
import pytest
from flwr.app import Message

from tests.memory_grid import MemoryGrid, Node, VirtualTime, learner, update, weights
from tests.memory_journal import MemoryJournal
from umbel.tensors import Tensors, dump
from umbel_server.flower import messages as flower_messages
from umbel_server.rounds.events import End
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.grid_port import GridPort
from umbel_server.runs.loop import run_rounds
from umbel_server.runs.port import NewCheckpoint
from umbel_server.runs.run_inputs import RunInputs
from umbel_server.runs.settings import RunSettings

POLICY = RoundPolicy(over_selection=1.0, deadline=2.0, attempts=3, backoff=0.5)


def settings(rounds: int, until: str = "", at_least: float = 0.0, policy: RoundPolicy = POLICY) -> RunSettings:
    return RunSettings(rounds=rounds, seed=5, until=until, at_least=at_least, policy=policy)


def of_strategy(name: str, options: dict[str, float], rounds: int = 1, policy: RoundPolicy = POLICY) -> RunSettings:
    return msgspec.structs.replace(settings(rounds, policy=policy), strategy=name, options=options)


def run(grid: MemoryGrid, journal: MemoryJournal, settings: RunSettings) -> End | None:
    time = VirtualTime()
    return run_rounds(grid, RunInputs(settings, GridPort(grid, journal, time.clock, time.sleep), 0.1))


def silent(message: Message) -> None:
    return None


def failing(message: Message) -> Message:
    return flower_messages.error_reply(message, 1, "phone-2: no examples")


def answering(change: Callable[[Tensors], Tensors], metrics: dict[str, float] | None = None) -> Node:
    def answer(message: Message) -> Message:
        (arrays,) = message.content.array_records.values()
        given = {"num-examples": 17.0, "loss": 1.0, "accuracy": 0.1} if metrics is None else metrics
        return flower_messages.reply(message, change(flower_messages.tensors_of(arrays)), given)

    return answer


def fedavg_of(start: Tensors, nodes: list[int], number: int) -> Tensors:
    examples = {node: 10 + 7 * node for node in nodes}
    total = sum(examples.values())
    updates = {node: update(start, node, number) for node in nodes}
    return {name: sum((updates[n][name] * np.float64(examples[n] / total)) for n in nodes) for name in start}


def assert_close(ours: Tensors, expected: Tensors) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_round_is_committed_with_the_average_of_the_devices() -> None:
    journal = MemoryJournal(weights())
    grid = MemoryGrid({node: learner(node) for node in (1, 2, 3)})
    run(grid, journal, settings(2))
    assert [commit.number for commit in journal.commits] == [1, 2]
    first = fedavg_of(weights(), [1, 2, 3], 1)
    assert_close(journal.commits[0].weights, first)
    assert_close(journal.commits[1].weights, fedavg_of(journal.commits[0].weights, [1, 2, 3], 2))
    commit = journal.commits[0]
    assert [weight for _, weight in sorted(commit.contributors, key=lambda it: it[1])] == [17, 24, 31]
    assert commit.opened == 1000.0
    assert commit.fleet_sums["loss"] == pytest.approx((17 * 1 + 24 / 2 + 31 / 3) / 72)
    assert list(commit.weights) == list(weights())


def test_a_run_goes_on_after_its_last_committed_round() -> None:
    journal = MemoryJournal(weights(), newest=4)
    grid = MemoryGrid({1: learner(1)})
    run(grid, journal, settings(6))
    assert [commit.number for commit in journal.commits] == [5, 6]
    assert_close(journal.commits[0].weights, update(weights(), 1, 5))
    assert [settings["seed"] for settings in grid.configs] == [10, 11]


def test_a_run_that_has_its_rounds_does_nothing() -> None:
    journal = MemoryJournal(weights(), newest=6)
    run(MemoryGrid({}), journal, settings(6))
    assert journal.commits == []


def test_the_run_ends_at_its_goal() -> None:
    journal = MemoryJournal(weights(), evaluate=lambda commit: {"accuracy": 0.25 * commit.number})
    run(MemoryGrid({1: learner(1)}), journal, settings(10, until="accuracy", at_least=0.75))
    assert [commit.number for commit in journal.commits] == [1, 2, 3]


def test_a_round_goes_on_without_those_that_fail_or_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    journal = MemoryJournal(weights())
    run(MemoryGrid({1: learner(1), 2: failing, 3: silent, 4: learner(4)}), journal, settings(1))
    assert len(journal.commits[0].contributors) == 2
    assert_close(journal.commits[0].weights, fedavg_of(weights(), [1, 4], 1))
    assert "phone-2: no examples" in caplog.text


BAD: dict[str, tuple[Node, str]] = {
    "missing": (answering(lambda w: {k: w[k] for k in ("z/kernel", "a/bias")}), "tensor 'm/scale' is missing"),
    "extra": (answering(lambda w: w | {"b": w["a/bias"]}), "tensor 'b' is not one of"),
    "misshapen": (answering(lambda w: w | {"a/bias": w["a/bias"][:2]}), r"should be float32\[4\], got float32\[2\]"),
    "double": (answering(lambda w: w | {"a/bias": w["a/bias"].astype(np.float64)}), "got float64"),
    "not finite": (answering(lambda w: w | {"m/scale": np.float32(np.nan)}), "NaN or infinity"),
    "no examples": (answering(lambda w: w, {"num-examples": 0.0, "loss": 1.0}), "a positive number of examples"),
    "uncounted": (answering(lambda w: w, {"loss": 1.0}), "a positive number of examples, got None"),
    "no weights": (answering(lambda w: {}), "one record of arrays and one of metrics, got 0 and 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_update_that_does_not_fit_is_left_out(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    node, reason = BAD[kind]
    journal = MemoryJournal(weights())
    run(MemoryGrid({1: learner(1), 2: node}), journal, settings(1))
    assert len(journal.commits[0].contributors) == 1
    assert_close(journal.commits[0].weights, update(weights(), 1, 1))
    (record,) = [record for record in caplog.records if record.name == "umbel.rounds"]
    assert re.search(reason, record.getMessage())


def test_arrays_in_another_order_are_the_same_update() -> None:
    results = []
    for change in (lambda w: w, lambda w: dict(reversed(w.items()))):
        journal = MemoryJournal(weights())
        options = {"server_momentum": 0.9, "server_learning_rate": 0.5}
        grid = MemoryGrid({1: answering(lambda w, c=change: c(update(w, 1, 1)))})
        run(grid, journal, of_strategy("fedavgm", options, rounds=2))
        results.append(journal.commits[-1].weights)
    assert_close(results[0], results[1])


def test_a_round_without_updates_is_tried_again() -> None:
    tries = count()

    def late(message: Message) -> Message | None:
        return learner(1)(message) if next(tries) == POLICY.attempts - 1 else None

    journal = MemoryJournal(weights())
    end = run(MemoryGrid({1: late}), journal, settings(1))
    assert [commit.number for commit in journal.commits] == [1]
    assert journal.reasons == ["1: 0 updates came, the quorum is 1"] * 2
    assert end is not None
    assert end.state == "finished"


@pytest.mark.parametrize(("node", "trouble"), [(failing, "; node 2: phone-2: no examples"), (silent, "")])
def test_a_run_pauses_after_too_many_rounds_without_updates(node: Node, trouble: str) -> None:
    grid = MemoryGrid({2: node})
    end = run(grid, MemoryJournal(weights()), settings(1))
    why = "round 1 was abandoned 3 times in a row, last because 0 updates came, the quorum is 1"
    assert end == End("paused", why + trouble)
    assert len(grid.asked) == POLICY.attempts


def test_too_few_updates_for_the_strategy_are_named() -> None:
    bulyan = of_strategy("bulyan", {"num_malicious_nodes": 1})
    end = run(MemoryGrid({1: learner(1), 2: learner(2)}), MemoryJournal(weights()), bulyan)
    assert end is not None
    assert end.state == "paused"
    assert re.search("last because Bulyan needs at least 7 updates, 2 were folded", end.reason)


def test_an_update_with_other_metrics_than_the_others_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    other = answering(lambda w: w, {"num-examples": 3.0, "error": 1.0})
    journal = MemoryJournal(weights())
    run(MemoryGrid({1: learner(1), 2: other}), journal, settings(1))
    assert len(journal.commits[0].contributors) == 1
    assert "the metrics of an update should be" in caplog.text


def test_an_update_with_a_metric_that_is_not_finite_counts(caplog: pytest.LogCaptureFixture) -> None:
    broken = answering(lambda w: w, {"num-examples": 3.0, "loss": 2.0, "accuracy": math.inf})
    journal = MemoryJournal(weights())
    run(MemoryGrid({1: learner(1), 2: broken}), journal, settings(1))
    (commit,) = journal.commits
    assert len(commit.contributors) == 2
    assert commit.fleet_sums["accuracy"] == pytest.approx(0.1)
    assert "node 2 reports numbers that are not finite for accuracy; its update counts" in caplog.text


def losing(losses: dict[int, float]) -> MemoryJournal:
    """A journal whose held-out loss is by round; a round that is missing has none that is finite."""

    def evaluated(commit: NewCheckpoint) -> dict[str, float]:
        return {"loss": losses[commit.number]} if commit.number in losses else {"accuracy": 0.1}

    return MemoryJournal(weights(), evaluate=evaluated)


@pytest.mark.parametrize(
    ("losses", "now"),
    [({1: 2.0, 2: 2001.0, 3: 1.0}, "2001"), ({1: 2.0, 3: 1.0}, "not finite"), ({1: 0.01, 2: 1e4}, "1e\\+04")],
)
def test_a_run_that_diverges_pauses_and_says_so(losses: dict[int, float], now: str) -> None:
    journal = losing(losses)
    end = run(MemoryGrid({1: learner(1)}), journal, settings(3))
    assert end is not None
    assert end.state == "paused"
    assert re.search(
        f"^the run diverges: its held-out loss is {now}, it was .* at first; go on from an earlier", end.reason
    )
    assert len(journal.commits) == 2


def test_a_run_that_may_diverge_goes_on_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    policy = msgspec.structs.replace(POLICY, max_loss_growth=0.0)
    end = run(MemoryGrid({1: learner(1)}), losing({1: 2.0, 2: 1e9, 3: 1.0}), settings(3, policy=policy))
    assert end is not None
    assert end.state == "finished"
    assert "round 2: the run diverges: its held-out loss is 1e+09" in caplog.text


def test_a_loss_that_grows_little_or_is_not_held_out_is_no_divergence() -> None:
    for losses in ({1: 0.001, 2: 999.0, 3: 0.5}, {}):
        end = run(MemoryGrid({1: learner(1)}), losing(losses), settings(3))
        assert end is not None
        assert end.state == "finished"


def test_weights_that_overflow_are_not_committed() -> None:
    journal = MemoryJournal(weights())
    far = answering(lambda w: {name: np.full_like(weight, 1e35) for name, weight in w.items()})
    policy = msgspec.structs.replace(POLICY, max_norm=0.0)
    end = run(MemoryGrid({1: far}), journal, of_strategy("fedavgm", {"server_learning_rate": 1e6}, 1, policy))
    assert end is not None
    assert end.state == "paused"
    assert re.search("3 times in a row, last because FedAvgM made weights that are not finite; lower", end.reason)
    assert journal.commits == []


POISONED = {"fedadam": 1e25, "fedyogi": 1e25, "fedadagrad": 1e25, "fedavgm": 3.4e38}
"""Finite numbers that overflow the weights or, squared, the moments."""


@pytest.mark.parametrize("name", POISONED)
def test_a_poisoned_attempt_leaves_no_trace(name: str) -> None:
    options = {"server_momentum": 0.9, "server_learning_rate": 2.0} if name == "fedavgm" else {}

    def commits(poisoned: int) -> tuple[list[NewCheckpoint], list[str]]:
        asked = count(1)

        def answer(message: Message) -> Message | None:
            if next(asked) != poisoned:
                return learner(1)(message)
            return answering(lambda w: {k: np.full_like(v, POISONED[name]) for k, v in w.items()})(message)

        journal = MemoryJournal(weights())
        policy = msgspec.structs.replace(POLICY, max_norm=0.0)
        run(MemoryGrid({1: answer}), journal, of_strategy(name, options, 3, policy))
        return journal.commits, journal.reasons

    good, reasons = commits(poisoned=0)
    assert reasons == []
    for poisoned in (1, 2, 3):
        others, reasons = commits(poisoned)
        assert len(reasons) == 1
        assert "not finite" in reasons[0]
        for ours, other in zip(others, good, strict=True):
            assert dump(ours.weights) == dump(other.weights)
            assert dump(ours.strategy) == dump(other.strategy)


def test_an_update_too_large_for_any_sum_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    journal = MemoryJournal(weights())
    huge = answering(lambda w: {name: np.full_like(weight, 3.4e38) for name, weight in w.items()})
    run(MemoryGrid({1: learner(1), 2: huge}), journal, settings(1))
    assert_close(journal.commits[0].weights, update(weights(), 1, 1))
    assert "a norm of at most 1e+09 was expected" in caplog.text


def test_a_round_that_lacks_devices_is_abandoned_with_who_is_missing() -> None:
    policy = RoundPolicy(quorum=2, deadline=1.0, attempts=1)
    end = run(MemoryGrid({1: learner(1)}), MemoryJournal(weights()), settings(1, policy=policy))
    assert end is not None
    assert "2 devices are needed and 1 can train" in end.reason


def test_the_round_commits_with_what_it_wants_and_drops_what_comes_later() -> None:
    journal = MemoryJournal(weights())
    policy = RoundPolicy(target=2, over_selection=2.0, deadline=2.0)
    grid = MemoryGrid({node: learner(node) for node in (1, 2, 3, 4)})
    run(grid, journal, settings(1, policy=policy))
    assert len(grid.asked[0]) == 4
    assert len(journal.commits[0].contributors) >= 2


def test_devices_evaluate_in_turn() -> None:
    journal = MemoryJournal(weights())
    policy = RoundPolicy(over_selection=1.0, deadline=2.0, evaluate=1)
    grid = MemoryGrid({node: learner(node) for node in (1, 2, 3)})
    run(grid, journal, settings(4, policy=policy))
    assert [(number, device) for number, device, _ in journal.evaluations] == [(1, "1"), (2, "2"), (3, "3")]


def test_a_budget_of_bytes_ends_the_run() -> None:
    size = sum(weight.nbytes for weight in weights().values())
    journal = MemoryJournal(weights())
    end = run(MemoryGrid({1: learner(1)}), journal, msgspec.structs.replace(settings(10), budget_bytes=5 * size))
    assert len(journal.commits) == 3
    assert end is not None
    assert "bytes is spent" in end.reason
