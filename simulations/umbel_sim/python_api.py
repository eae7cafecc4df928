"""The Python API: a simulation in a line, and a comparison of variants."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.task import Task, load_task
from umbel_server.rounds.policy import RoundPolicy
from umbel_sim import data as sources
from umbel_sim.data import Dataset
from umbel_sim.fleet_data import Fleet, Statistics
from umbel_sim.report.result import Result, Variant
from umbel_sim.simulation.folder import claimed
from umbel_sim.simulation.journal import Row
from umbel_sim.simulation.settings import IN_A_DAY, NO_RULES, Settings
from umbel_sim.simulation.simulating import Plans, check, data_of, data_of_fleet, run

POLICY = tuple(field.name for field in msgspec.structs.fields(RoundPolicy))
NO_SETTINGS = {
    "seed": "give the first seed and how many",
    **dict.fromkeys(("policy", "options"), "name one of its fields"),
    **dict.fromkeys(
        ("task", "data", "test", "folder", "told", "stage", "split", "plans"), "simulate one after the other"
    ),
    **dict.fromkeys(("engine", "workers", "address"), "a simulation's result depends on it in its last bits at most"),
}
"""Names that are no setting of a simulation whose values a sweep compares, and what to do instead."""

OWN = tuple(field.name for field in fields(Settings) if field.name not in ("policy", "options"))


def simulate(
    task: Task | Path | str,
    data: Dataset | Fleet | str,
    *,
    test: Mapping[str, NDArray[Any]] | None = None,
    policy: RoundPolicy | None = None,
    engine: str = "auto",
    workers: int = 0,
    address: str = "",
    folder: Path | str | None = None,
    told: Callable[[Row], None] = lambda row: None,
    stage: Callable[[str], None] = lambda text: None,
    split: Callable[[Statistics], None] = lambda statistics: None,
    plans: Plans | None = None,
    **settings: Any,
) -> Result:
    """Train virtual devices and return what came of it.

    `task` is a Task or its file, `data` a name, a file or a Dataset (umbel_sim.data), or a
    FunctionFleet, whose held-out examples are `test`.
    `settings` are fields of Settings and of RoundPolicy by their names, and options of the strategy: devices=100,
    partition="shards:2", fraction=0.1, strategy="fedadam", eta=0.01. `engine`, `workers` and `address` are those of
    umbel_sim.engines.choice.make_engine; they change the result in its last bits at most. With a `folder` the result is saved there, and a
    simulation that was interrupted goes on. `told` hears of every checkpoint, `stage` of what comes before the first one,
    `split` of how the examples lie. Simulations of one task may share their `plans`. Raises UmbelError.
    """
    place = Path(folder) if folder is not None else None
    with ExitStack() as held:
        if place is not None:
            held.enter_context(claimed(place))
        where = engine, workers, address
        return _simulate(task, data, test, policy, where, place, told, stage, split, plans, settings)


def _simulate(
    task: Task | Path | str,
    data: Dataset | Fleet | str,
    test: Mapping[str, NDArray[Any]] | None,
    policy: RoundPolicy | None,
    where: tuple[str, int, str],
    place: Path | None,
    told: Callable[[Row], None],
    stage: Callable[[str], None],
    split: Callable[[Statistics], None],
    plans: Plans | None,
    settings: Mapping[str, Any],
) -> Result:
    loaded, (engine, workers, address) = _loaded(task), where
    if isinstance(data, str | Path):
        data = sources.load(str(data), loaded)
    if isinstance(data, Dataset):
        chosen = settings_of(settings, policy)
        stage("splitting the data")
        made = data_of(data, chosen)
    else:
        chosen = settings_of({**settings, "devices": data.devices, "partition": "function"}, policy)
        made = data_of_fleet(data, test or {})
    split(made.fleet.statistics())
    outcome = run(
        loaded,
        made,
        chosen,
        engine=engine,
        workers=workers,
        address=address,
        folder=place,
        told=told,
        stage=stage,
        plans=plans,
    )
    result = Result.of(outcome)
    if place is not None:
        stage("drawing")
        result.save(place)
    return result


def _loaded(task: Task | Path | str) -> Task:
    if isinstance(task, Task):
        return task
    import_keras()  # before the task's file does, whose TensorFlow would not be silent
    return load_task(Path(task))


def settings_of(given: Mapping[str, Any], policy: RoundPolicy | None = None) -> Settings:
    """Settings of flat names: those of Settings, of RoundPolicy, and else of the strategy; raises UmbelError."""
    own = {name: value for name, value in given.items() if name in OWN}
    rules = {name: value for name, value in given.items() if name in POLICY}
    options = {name: value for name, value in given.items() if name not in OWN and name not in POLICY}
    try:
        changed = msgspec.convert(
            {**msgspec.to_builtins(policy or IN_A_DAY), **msgspec.to_builtins(rules)}, RoundPolicy
        )
    except (msgspec.ValidationError, TypeError) as error:
        raise UmbelError(f"the round policy cannot be used: {error}") from error
    wrong = {name: value for name, value in options.items() if name != "options" and not isinstance(value, int | float)}
    if wrong:
        name = next(iter(wrong))
        raise UmbelError(f"a simulation has no setting {name!r}; it has {', '.join([*OWN, *POLICY])}")
    more = options.pop("options", {})
    if "mix" in own:
        own["mix"] = (own["mix"],) if isinstance(own["mix"], str) else tuple(own["mix"])
    own = {name: _of_its_kind(name, value) for name, value in own.items()}
    return Settings(**own, options={**more, **options}, policy=_sized(changed, own))


def _of_its_kind(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        value = str(value)
    try:
        return msgspec.convert(value, get_type_hints(Settings)[name])
    except msgspec.ValidationError as error:
        raise UmbelError(f"the simulation's {name.replace('_', ' ')} cannot be {value!r}: {error}") from error


def _sized(policy: RoundPolicy, own: Mapping[str, Any]) -> RoundPolicy:
    """A fraction of devices that can all be had at any time is a number of them: nobody needs to look at each."""
    if (
        policy.target
        or policy.mode == "async"
        or own.get("availability", "always") != "always"
        or own.get("conditions", NO_RULES) != NO_RULES
        or policy.select != "random"
        or policy.labels
        or policy.minimum_gap
    ):
        return policy
    return msgspec.structs.replace(policy, target=policy.wanted(int(own.get("devices", Settings.devices))))


def variants(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def sweep(
    task: Task | Path | str,
    data: Dataset | str,
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: int = 1,
    told: Callable[[str, Row], None] = lambda label, row: None,
    **settings: Any,
) -> tuple[Variant, ...]:
    """Simulate every combination of `grid` with `seeds` seeds each, from `seed` on; raises UmbelError.

    All of them are checked before the first one is trained.
    """
    if unknown := [name for name in grid if name in NO_SETTINGS]:
        raise UmbelError(f"{unknown[0]} is not a setting whose values can be compared; {NO_SETTINGS[unknown[0]]}")
    for changes in variants(grid):
        chosen = {name: value for name, value in settings.items() if name not in NO_SETTINGS}
        check(settings_of({**chosen, **changes}, settings.get("policy")))
    loaded = _loaded(task)
    dataset = sources.load(data, loaded) if isinstance(data, str) else data
    first, found = int(settings.pop("seed", 0)), []
    with tempfile.TemporaryDirectory(prefix="umbel-sweep-") as name:
        plans = Plans(loaded, Path(name))
        for changes in variants(grid):
            results = []
            for seed in range(first, first + seeds):
                label = ", ".join(f"{name}={value}" for name, value in changes.items())

                def heard(row: Row, label: str = f"{label}, seed {seed}") -> None:
                    told(label, row)

                chosen = {**settings, **changes, "seed": seed}
                results.append(simulate(loaded, dataset, told=heard, plans=plans, **chosen))
            found.append(Variant(changes, tuple(results)))
    return tuple(found)
