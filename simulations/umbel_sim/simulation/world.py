"""The course of an assignment on a virtual device, computed in advance because it depends only on seeds."""

import math
from dataclasses import dataclass

from umbel.conditions import Readings, Rules, violations
from umbel.plan import Plan
from umbel_sim.virtual.availability import HOUR, Availability, Condition
from umbel_sim.virtual.classes import DeviceClass, Mix
from umbel_sim.virtual.operations import training_operations
from umbel_sim.virtual.seeds import generator

LONGEST_LOOK = 5000
"""Changes of a device's conditions that are looked through for the end of an assignment; later ones count as never."""

CENTURY = 3.2e9
"""Seconds after which nobody waits for a device any more."""


@dataclass(frozen=True)
class Course:
    """The course of an assignment in virtual seconds: `ends` is infinite when the device is never heard of again.

    `outcome` is `uploaded`, or `declined`, `failed` or `vanished` with a `reason`. `computes` is when its training would
    be over if nothing came between.
    """

    accepts: float
    trains: float
    computes: float
    ends: float
    outcome: str
    reason: str = ""

    def trained(self, until: float) -> float:
        """Seconds that the device has trained by `until`."""
        return max(0.0, min(until, self.computes, self.ends) - self.trains)


@dataclass(frozen=True)
class Load:
    """The load of an assignment: bytes down and up, and the floating-point operations of a training step."""

    down: int
    up: int
    operations: float

    @staticmethod
    def of(plan: Plan) -> "Load":
        """That of a plan: safetensors bytes but for a short header; what commands and answers take is not counted."""
        moved = sum(weight.nbytes for weight in plan.initial_weights().values())
        return Load(moved, moved, training_operations(plan) * plan.manifest.batch_size)


@dataclass(frozen=True)
class World:
    """Virtual devices: their classes, when they can be had, and the rules of their owners (`conditions`)."""

    seed: int
    devices: int
    mix: Mix
    availability: Availability
    conditions: Rules

    def name(self, device: int) -> str:
        """A device's name; names are in the order of numbers."""
        return f"device-{device:0{len(str(self.devices - 1))}}"

    def number(self, name: str) -> int:
        """The number of a device by its name."""
        return int(name.rpartition("-")[2])

    def kind(self, device: int) -> DeviceClass:
        """A device's class."""
        return self.mix.class_of(self.seed, device)

    def seconds_per_step(self, device: int, load: Load) -> float:
        """Seconds of a training step on a device."""
        return self.kind(device).step_seconds(load.operations) * self.mix.speed_of(self.seed, device)

    def why_not(self, device: int, time: float, rules: Rules, examples: int) -> tuple[str, ...]:
        """The rules that a device breaks, as phrases."""
        return self.broken(device, self.availability.at(device, time), time, rules, examples)

    @staticmethod
    def changes(now: Condition, time: float, rules: Rules) -> float:
        """When what holds at `time`, or the hour that the rules ask about, is another."""
        return min(now.until, (time // HOUR + 1) * HOUR) if rules.hours else now.until

    def broken(self, device: int, now: Condition, time: float, rules: Rules, examples: int) -> tuple[str, ...]:
        """Which of `rules` a device breaks, as phrases, when `now` holds at `time`."""
        if rules.ask_nothing:
            return ()
        readings = Readings(
            battery=now.battery,
            charging=now.charging,
            metered=now.metered,
            hour=int(time // HOUR) % 24,
            free_memory_mb=self.kind(device).memory,
            examples=examples,
        )
        return tuple(violation.phrase for violation in violations(rules, readings))

    def course(
        self, device: int, assignment: str, start: float, load: Load, steps: int, examples: int, requires: Rules
    ) -> Course:
        """The course of an assignment that is offered at `start`, for training that takes `steps`."""
        kind, rules = self.kind(device), self.conditions.merge(requires)
        accepts = start + kind.latency
        broken = self.why_not(device, accepts, rules, examples)
        if broken:
            return Course(accepts, accepts, accepts, accepts, "declined", "; ".join(broken))
        trains = accepts + load.down / kind.download
        computes = trains + steps * self.seconds_per_step(device, load)
        ends = computes + load.up / kind.upload + kind.latency
        if not ends - start < CENTURY:
            return Course(accepts, trains, computes, math.inf, "vanished", "the device would take a century")
        chance = generator(self.seed, "fate", assignment) if kind.drop_out else None
        if chance is not None and chance.random() < kind.drop_out:
            gone = accepts + chance.random() * (ends - accepts)
            return Course(accepts, trains, min(computes, gone), math.inf, "vanished", "the device vanished")
        time = accepts
        for _ in range(LONGEST_LOOK):
            now = self.availability.at(device, time)
            if time < computes and (broken := self.broken(device, now, time, rules, examples)):
                return Course(accepts, trains, computes, time, "failed", "; ".join(broken))
            if time >= computes and now.online and not (rules.unmetered and now.metered):
                # What is trained is sent as soon as the device is connected again, and unmetered if it must be.
                ends = max(ends, time + load.up / kind.upload + kind.latency)
                return Course(accepts, trains, computes, ends, "uploaded")
            until = self.changes(now, time, rules)
            if until >= computes and time < computes:
                time = computes
            elif until == math.inf:
                break
            else:
                time = until
        return Course(accepts, trains, computes, math.inf, "vanished", "the device was not connected again")
