"""Updates that are meant to spoil the model: refused, or outvoted where nobody can tell them from honest ones."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.waiting import eventually
from umbel import tensors
from umbel.messages import Blob, Command, Outcome, Train, Trained
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_server.runs.settings import RunSettings

PlanOf = Callable[[str], Plan]

HONEST, HOSTILE = 5, 2
STEP = 0.1
"""How far every honest update goes, give or take a tenth."""


def honest(plan: Plan, number: int) -> Tensors:
    rng = np.random.default_rng(number)
    return {s.name: (STEP * (1 + rng.uniform(-0.1, 0.1, s.shape))).astype(np.float32) for s in plan.manifest.weights}


def answer(update_of: Callable[[], Tensors], examples: int = 10) -> Callable[[Command], Outcome | None]:
    def work(command: Command) -> Outcome | None:
        if not isinstance(command.body, Train):
            return None
        return Trained(command.body.assignment, Blob.of(tensors.dump(update_of())), examples, {"loss": 0.5})

    return work


def trained(
    running: RunningServer, plan: Plan, poison: Callable[[], Tensors], examples: int = 10, **settings: Any
) -> tuple[dict[str, tuple[str, str]], Tensors]:
    """One round of HONEST and HOSTILE devices: states and reasons by device, and how far the weights went."""
    fleet = [
        ScriptedDevice(running, f"honest-{i}", answer(lambda i=i: honest(plan, i)))
        for i in range(HONEST)  # type: ignore[misc]
    ] + [ScriptedDevice(running, f"hostile-{i}", answer(poison, examples)) for i in range(HOSTILE)]
    running.wait_online(len(fleet))
    policy = {"deadline": 10.0, "attempts": 1, "target": len(fleet), "quorum": HONEST, **settings.pop("policy", {})}
    wanted = msgspec.convert({"rounds": 1, "policy": policy, **settings}, RunSettings)
    id = running.server.runs.start(POPULATION, plan.sha256, wanted).id
    eventually(lambda: running.server.runs.get(id).state != "running", 40)
    run = running.client.get(f"/v1/runs/{id}")
    for device in fleet:
        device.stop()
    assert run["state"] == "finished", run["reason"]
    after = tensors.load(running.server.blobs.get(running.server.runs.checkpoint(id).weights))
    moved = {name: after[name] - weight for name, weight in plan.initial_weights().items()}
    return {one["device"]: (one["state"], one["reason"]) for one in run["assignments"]}, moved


def is_near(moved: Tensors) -> bool:
    """Whether the model went where the honest ones would have it go."""
    return all(np.all(np.abs(step - STEP) < 0.15 * STEP) for step in moved.values())


def poisons(plan: Plan) -> dict[str, tuple[str, Callable[[], Tensors], int]]:
    right = honest(plan, 0)
    first = next(iter(right))
    infinite = {**right, first: np.full_like(right[first], np.inf)}
    return {
        "nan": ("NaN or infinity", lambda: {**right, first: np.full_like(right[first], np.nan)}, 10),
        "infinite": ("NaN or infinity", lambda: infinite, 10),
        "huge": ("a norm of at most", lambda: {name: t * np.float32(1e4) for name, t in right.items()}, 10),
        "shape": ("should be float32", lambda: {**right, first: np.zeros((7, 7), np.float32)}, 10),
        "missing": ("is missing", lambda: {}, 10),
        "dtype": ("should be float32", lambda: {name: t.astype(np.float64) for name, t in right.items()}, 10),
        "no examples": ("at least 1 example was expected", lambda: right, 0),
    }


@pytest.mark.parametrize("how", ["nan", "infinite", "huge", "shape", "missing", "dtype", "no examples"])
def test_what_cannot_be_an_update_is_rejected_with_a_reason_and_moves_nothing(
    running: RunningServer, plan_of: PlanOf, how: str
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    sentence, poison, examples = poisons(plan)[how]
    states, moved = trained(running, plan, poison, examples, policy={"max_norm": 100 * STEP})
    assert {states[f"honest-{i}"][0] for i in range(HONEST)} == {"folded"}
    for i in range(HOSTILE):
        state, reason = states[f"hostile-{i}"]
        assert state == "rejected"
        assert sentence in reason
        assert f"hostile-{i}" in reason
    assert is_near(moved)


def flipped(plan: Plan) -> Tensors:
    """Against the honest ones, and no longer than ten of their steps: within any bound that honest devices need."""
    return {name: -10 * step for name, step in honest(plan, 0).items()}


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("fedmedian", {}),
        ("fedtrimmedavg", {"beta": 0.3}),
        ("krum", {"num_malicious_nodes": HOSTILE}),
        ("multikrum", {"num_malicious_nodes": HOSTILE, "num_nodes_to_select": 3}),
    ],
)
def test_flipped_signs_within_the_bound_are_outvoted(
    running: RunningServer, plan_of: PlanOf, strategy: str, options: dict[str, float]
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    states, moved = trained(running, plan, lambda: flipped(plan), strategy=strategy, options=options)
    assert {state for state, _ in states.values()} == {"folded"}
    assert is_near(moved)


def test_an_average_follows_them(running: RunningServer, plan_of: PlanOf) -> None:
    """Why there are robust strategies."""
    plan = running.server.plans.add(plan_of("line").path)
    _, moved = trained(running, plan, lambda: flipped(plan))
    assert not is_near(moved)
