"""Every engine makes of a job the update that the agent's trainer makes of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from umbel.errors import UmbelError
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel.task import Task
from umbel_sim import data as sources
from umbel_sim.engines import Done, Job, choice
from umbel_sim.engines.litert import litert_engine
from umbel_sim.engines.native import library
from umbel_sim.engines.threads import ThreadsEngine
from umbel_sim.engines.xla import CLIENTS, XLAEngine
from umbel_sim.fleet_data import Fleet
from umbel_sim.partitions import partition
from umbel_sim.tasks import digits

NOWHERE = Blob("0" * 64, 1)


@pytest.fixture(scope="module")
def plan(plan_of: Callable[[str], Plan]) -> Plan:
    return plan_of("digits")


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """Devices with one example, a few and many, none of them whole batches."""
    return partition("quantity:1.5", sources.load("digits"), 40, seed=1)


@pytest.fixture(scope="module")
def engines(plan: Plan, fleet: Fleet) -> Iterator[tuple[ThreadsEngine, XLAEngine]]:
    made = litert_engine(plan, fleet, 2), XLAEngine(digits.task, plan, fleet)
    yield made
    for engine in made:
        engine.close()


def jobs(plan: Plan, devices: range, **how: float) -> list[Job]:
    train = Train("0" * 16, "run", 1, NOWHERE, NOWHERE, 0.0, learning_rate=0.1, seed=7)
    return [
        Job(device, f"device-{device}", plan.initial_weights(), msgspec.structs.replace(train, **how))
        for device in devices
    ]


def done(futures: "list[Future[Done]]") -> list[Done]:
    return [future.result(120) for future in futures]


@pytest.mark.parametrize("how", [{"epochs": 2}, {"max_steps": 3}, {"proximal_mu": 0.5, "max_steps": 4}])
def test_xla_makes_the_updates_of_the_interpreters(
    engines: tuple[ThreadsEngine, XLAEngine], plan: Plan, how: dict[str, float]
) -> None:
    given = jobs(plan, range(CLIENTS + 3), **how)
    shared = [replace(job, weights=given[0].weights) for job in given]
    ours, theirs = (done([engine.submit(job) for job in shared]) for engine in engines)
    for one, other in zip(ours, theirs, strict=True):
        assert one.examples == other.examples
        assert one.metrics.keys() == other.metrics.keys()
        for name, value in one.metrics.items():
            assert other.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert one.delta.keys() == other.delta.keys()
        for name, delta in one.delta.items():
            np.testing.assert_allclose(other.delta[name], delta, rtol=0, atol=1e-6)


def test_the_same_jobs_give_the_same_bytes_in_whatever_company(
    engines: tuple[ThreadsEngine, XLAEngine], plan: Plan
) -> None:
    xla = engines[1]
    given = jobs(plan, range(6), max_steps=2)
    alone = [xla.submit(job).result(120) for job in given]
    shared = [replace(job, weights=given[0].weights) for job in given]
    together = done([xla.submit(job) for job in reversed(shared)])[::-1]
    for one, other in zip(alone, together, strict=True):
        assert {n: d.tobytes() for n, d in one.delta.items()} == {n: d.tobytes() for n, d in other.delta.items()}


def test_what_goes_wrong_in_training_is_raised_by_its_job_alone(
    engines: tuple[ThreadsEngine, XLAEngine], plan: Plan
) -> None:
    good, bad = jobs(plan, range(1), max_steps=1)[0], replace(jobs(plan, range(1))[0], device=10**6)
    for engine in engines:
        with pytest.raises(IndexError, match="device 1000000"):
            engine.submit(bad).result(120)
        assert engine.submit(good).result(120).examples > 0


def choose(task: Task | None, plan: Plan, fleet: Fleet, updates: int) -> choice.Chosen:
    made = choice.make_engine("auto", task, plan, fleet, 2, updates, lambda text: None)
    made.engine.close()
    return made


def test_auto_measures_what_could_pay(plan: Plan, fleet: Fleet) -> None:
    short = choose(digits.task, plan, fleet, 10)
    assert "before XLA had compiled" in short.why
    assert "on 2 interpreters" in short.why
    assert "ms compiled" in short.why
    long = choose(digits.task, plan, fleet, 10**9)
    assert "with XLA" in long.why
    assert short.engine.name in ("native", "litert")
    assert long.engine.name in ("native", "litert", "xla")


def test_auto_says_why_a_task_is_not_trained_by_compiled_code(
    plan: Plan, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "compiled", None)
    chosen = choose(digits.task, plan, fleet, 10)
    assert chosen.engine.name == "litert"
    assert "the native engine was not compiled" in chosen.why
    with pytest.raises(UmbelError, match="install a C compiler"):
        choice.make_engine("native", digits.task, plan, fleet, 2, 1, lambda text: None)


def test_without_its_task_a_plan_is_for_the_interpreters(plan: Plan, fleet: Fleet) -> None:
    assert choose(None, plan, fleet, 10**9).engine.name == "litert"
    with pytest.raises(UmbelError, match="compiles the task itself"):
        choice.make_engine("xla", None, plan, fleet, 2, 1, lambda text: None)
