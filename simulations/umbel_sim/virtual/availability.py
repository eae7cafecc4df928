"""The virtual times at which devices are connected, charging and on an unmetered network."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from umbel_sim.virtual.seeds import generator

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Condition:
    """The conditions of a device until virtual second `until`: whether it is online, charging, on a metered network."""

    online: bool = True
    charging: bool = True
    metered: bool = False
    battery: float = 1.0
    until: float = math.inf


class Availability(Protocol):
    """A source of the conditions of virtual devices."""

    def at(self, device: int, time: float) -> Condition:
        """The conditions of a device at a virtual second; they do not change before `until`."""


class Always:
    """Every device is always online, charging and on an unmetered network."""

    def at(self, device: int, time: float) -> Condition:
        """As Availability."""
        return Condition()


@dataclass(frozen=True)
class Diurnal:
    """People's days: phones are charged at home at night, mostly unmetered there, and out of reach now and then.

    A device has a habit - when it is put on its charger (a normal of mean 22.5 h and sigma 1.5 h, in a time zone drawn
    from `zones` hours around that of virtual second 0) and for how long (7.5 h, sigma 1 h) - and every day differs a
    little from it. Online it is `online` of the time while charging and half of that else. On the charger it is
    unmetered with the habit's probability. Its battery falls from full to a fifth over the hours off the charger, by a
    step an hour.
    """

    seed: int
    online: float = 0.95
    zones: float = 3.0

    def at(self, device: int, time: float) -> Condition:
        """As Availability."""
        habit = _habit(self.seed, device, self.zones)
        day = math.floor((time - habit.noon) / DAY)
        if habit.noon + (day + 1) * DAY <= time:
            day += 1  # it is noon, and the division was rounded down
        plugged, unplugged = _night(self.seed, device, self.zones, day)
        next_noon = habit.noon + (day + 1) * DAY
        charging = plugged <= time < unplugged
        change = plugged if time < plugged else unplugged if charging else next_noon
        share = self.online if charging else self.online / 2
        slot = math.floor(time / HOUR)
        if time < slot * HOUR:
            slot -= 1  # just before the hour, and the quotient was rounded up
        online = _luck(self.seed, device, slot) < share
        battery = 1.0
        if not charging:
            full = unplugged if time >= plugged else _night(self.seed, device, self.zones, day - 1)[1]
            drained = (max(full, slot * HOUR) - full) / (DAY * 0.7)
            battery = max(0.05, 1.0 - 0.8 * drained)
        return Condition(online, charging, not (charging and habit.unmetered), battery, min(change, (slot + 1) * HOUR))


@dataclass(frozen=True)
class _Habit:
    noon: float
    plugs_in: float
    charges: float
    unmetered: bool


@lru_cache(maxsize=4096)
def _habit(seed: int, device: int, zones: float) -> _Habit:
    draw = generator(seed, "habit", device)
    noon = 12 * HOUR + draw.uniform(-zones, zones) * HOUR
    plugs_in = min(max(draw.gauss(10.5, 1.5), 4.0), 15.0) * HOUR  # after noon
    charges = min(max(draw.gauss(7.5, 1.0), 3.0), 8.5) * HOUR
    return _Habit(noon, plugs_in, charges, draw.random() < 0.85)


@lru_cache(maxsize=4096)
def _night(seed: int, device: int, zones: float, day: int) -> tuple[float, float]:
    habit, draw = _habit(seed, device, zones), generator(seed, "night", device, day)
    plugged = habit.noon + day * DAY + habit.plugs_in + draw.uniform(-0.5, 0.5) * HOUR
    unplugged = plugged + habit.charges + draw.uniform(-0.5, 0.5) * HOUR
    return plugged, min(unplugged, habit.noon + (day + 1) * DAY)


@lru_cache(maxsize=16384)
def _luck(seed: int, device: int, slot: int) -> float:
    """The draw that decides whether a device is online in an hour; cached, because many rounds ask for the same hours."""
    return generator(seed, "online", device, slot).random()
