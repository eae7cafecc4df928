"""Several real agents in one process, each a thread with its own configuration, key and state folder.

`python -m tests.faults.agent_host LEDGER CONFIG...` runs until its standard input ends; a line `skew SECONDS` there moves
the agents' clocks. Every finished training is a line of LEDGER: the process, the device, the assignment and the digest
of the update that came of it.
"""

import argparse
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from umbel.examples import Examples
from umbel.messages import Train
from umbel.metrics import Sums
from umbel.plan import Plan
from umbel.tensors import Tensors, digest, dump
from umbel_edge.agent import Agent, trainer_of
from umbel_edge.config import AgentConfig, load_config
from umbel_edge.training.saved_progress import SavedProgress
from umbel_edge.training.trainer import Trainer, TrainingOutcome

STOP_SECONDS = 10.0


class Line(msgspec.Struct, frozen=True):
    """A finished training; `life` is the id of the process in which the agent lived then."""

    life: int
    device: str
    assignment: str
    update: str


class Ledger:
    """A file that gets a line for every finished training, whole even when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, device: str, assignment: str, update: str) -> None:
        """Write a line."""
        os.write(self._file, msgspec.json.encode(Line(os.getpid(), device, assignment, update)) + b"\n")


class Recorded:
    """A trainer that writes down what it finished."""

    def __init__(self, trainer: Trainer, device: str, ledger: Ledger) -> None:
        self._trainer, self._device, self._ledger = trainer, device, ledger

    def train(
        self,
        plan: Plan,
        weights: Tensors,
        examples: Examples,
        how: Train,
        check: Callable[[], None],
        progress: SavedProgress | None = None,
    ) -> TrainingOutcome:
        """As the trainer."""
        before = {name: weight.copy() for name, weight in weights.items()}
        outcome = self._trainer.train(plan, weights, examples, how, check, progress)
        update = {name: outcome.weights[name] - weight for name, weight in before.items()}
        self._ledger.note(self._device, how.assignment, digest(dump(update)))
        return outcome

    def evaluate(self, plan: Plan, weights: Tensors, examples: Examples, check: Callable[[], None]) -> Sums:
        """As the trainer."""
        return self._trainer.evaluate(plan, weights, examples, check)


def recorded(ledger: Ledger) -> Callable[[AgentConfig], Trainer]:
    """Makes trainers that write down what they finished."""
    return lambda config: Recorded(trainer_of(config), config.device, ledger)


class SkewedClock:
    """The time of day, and how far these devices are off."""

    def __init__(self) -> None:
        self.skew = 0.0

    def __call__(self) -> float:
        return time.time() + self.skew


def main() -> None:
    """Run the agents until standard input ends."""
    faulthandler.enable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("configs", type=Path, nargs="+")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(threadName)s %(name)s: %(message)s"
    )
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    ledger, clock = Ledger(options.ledger), SkewedClock()
    agents = [Agent(load_config(path), clock, make_trainer=recorded(ledger)) for path in options.configs]
    threads = [
        threading.Thread(target=agent.run, name=path.parent.name)
        for agent, path in zip(agents, options.configs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        match line.split():
            case ["skew", seconds]:
                clock.skew = float(seconds)
                print(f"the clocks are {seconds} s off", file=sys.stderr)
    for agent in agents:
        agent.stop()
    for thread in threads:
        thread.join(STOP_SECONDS)


if __name__ == "__main__":
    main()
