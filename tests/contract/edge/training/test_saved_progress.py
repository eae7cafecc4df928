"""Training that is interrupted at any batch and goes on in another process gives the same bytes as undisturbed training."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from umbel.examples import Examples
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel.task import load_task
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_edge.training.saved_progress import SavedProgress
from umbel_edge.training.trainer import Cancelled, TrainingOutcome
from umbel_server.compiler import compile_task

TASK = """
import keras
from umbel import Task, TensorSpec


def model():
    return keras.Sequential([
        keras.Input((3,)),
        keras.layers.Dense(8, "relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ])


task = Task(
    "noisy", model, "mse", TensorSpec((3,)), TensorSpec((1,)), optimizer="adam", metrics=["mae"], batch_size=4
)
"""
HOW = Train("a", "r", 1, Blob("", 0), Blob("", 0), 0.0, learning_rate=0.01, epochs=3, seed=5)
BATCHES = 18
"""Three epochs of 23 examples in batches of 4."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("noisy")
    (folder / "noisy.py").write_text(TASK)
    return compile_task(load_task(folder / "noisy.py"), folder / "noisy.plan", check=False)


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    return Examples({name: rng.normal(size=(23, n)).astype(np.float32) for name, n in (("x", 3), ("y", 1))}, 23)


class Device:
    """Trains with saved progress in `folder`; its clock advances one second a batch, and it may be killed before any batch."""

    def __init__(self, plan: Plan, examples: Examples, folder: Path) -> None:
        self.plan, self.examples, self.folder = plan, examples, folder
        self.now = 0.0
        self.batches = 0
        self.saves: set[int] = set()

    def train(self, kill_at: int = -1, every: float = 1.0, how: Train = HOW, identity: str = "one") -> TrainingOutcome:
        self.batches = 0
        self.saves = set()
        path = self.folder / "progress.npz"

        def check() -> None:
            if path.exists():
                self.saves.add(path.stat().st_mtime_ns)
            if self.batches == kill_at:
                raise Cancelled("killed")
            self.batches += 1
            self.now += 1.0

        progress = SavedProgress(path, identity, every, lambda: self.now)
        trainer = LiteRTTrainer("phone")
        return trainer.train(self.plan, self.plan.initial_weights(), self.examples, how, check, progress)


@pytest.fixture
def device(plan: Plan, examples: Examples, tmp_path: Path) -> Device:
    return Device(plan, examples, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, examples: Examples) -> Callable[[Train], TrainingOutcome]:
    return lambda how: LiteRTTrainer("phone").train(plan, plan.initial_weights(), examples, how, lambda: None)


def same(one: TrainingOutcome, other: TrainingOutcome) -> bool:
    return one.metrics == other.metrics and all(
        np.array_equal(one.weights[name], other.weights[name]) for name in other.weights
    )


@pytest.mark.parametrize("kill_at", [1, 5, 6, 7, 12, 17])
def test_an_outcome_does_not_show_that_training_was_cut_off(
    device: Device, undisturbed: Callable[[Train], TrainingOutcome], kill_at: int
) -> None:
    with pytest.raises(Cancelled):
        device.train(kill_at)
    assert same(device.train(), undisturbed(HOW))
    assert device.batches == BATCHES - kill_at


def test_a_device_that_is_killed_again_and_again_gets_there(
    device: Device, undisturbed: Callable[[Train], TrainingOutcome]
) -> None:
    done = 0
    for _ in range(BATCHES // 4):
        with pytest.raises(Cancelled):
            device.train(kill_at=4, every=2.0)
        done += 4
    how = msgspec.structs.replace(HOW, max_steps=17)
    assert same(device.train(how=how), undisturbed(how))
    assert device.batches == 17 - done


def test_what_was_saved_for_other_work_or_is_damaged_is_not_used(
    device: Device, undisturbed: Callable[[Train], TrainingOutcome]
) -> None:
    path = device.folder / "progress.npz"
    with pytest.raises(Cancelled):
        device.train(kill_at=9, identity="another")
    assert same(device.train(), undisturbed(HOW))
    assert device.batches == BATCHES
    saved = path.read_bytes()
    for damaged in (saved[:-100], saved[:200] + bytes([saved[200] ^ 1]) + saved[201:], b"", b"PK"):
        path.write_bytes(damaged)
        assert same(device.train(), undisturbed(HOW))
        assert device.batches == BATCHES


def test_fedprox_begins_again_because_its_anchor_cannot_be_set_apart(
    device: Device, undisturbed: Callable[[Train], TrainingOutcome]
) -> None:
    how = msgspec.structs.replace(HOW, proximal_mu=0.5)
    with pytest.raises(Cancelled):
        device.train(kill_at=9, how=how)
    assert not list(device.folder.iterdir())
    assert same(device.train(how=how), undisturbed(how))
    assert device.batches == BATCHES


def test_saving_spares_the_flash(device: Device) -> None:
    device.train(every=5.0)
    assert len(device.saves) == 3
    (device.folder / "progress.npz").unlink()
    device.train(every=0.0)
    assert len(device.saves) == 0
