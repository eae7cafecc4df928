"""The command `umbel simulate`."""

import functools
import inspect
import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from umbel.errors import UmbelError
from umbel_server.cli.options import parameter
from umbel_server.cli.output import console, print_json
from umbel_server.cli.runs import policy as policy_options
from umbel_server.cli.values import budget, goal, number_pair, pair
from umbel_sim.simulation.settings import IN_A_DAY

if TYPE_CHECKING:
    from umbel_sim.fleet_data import Spread, Statistics
    from umbel_sim.report.result import Result, Variant

FLEET, TRAINING, MACHINE = "Virtual devices", "Training", "This machine"
_NOT_IN_VIRTUAL_TIME = ("max_rejections",)

OPTIONS: tuple[tuple[str, Any, str, str, str, dict[str, Any]], ...] = (
    ("devices", int, FLEET, "number of virtual devices", "100", {"metavar": "N", "min": 1}),
    (
        "partition",
        str,
        FLEET,
        "how examples are split: iid, dirichlet:ALPHA, shards:LABELS, quantity:SIGMA, natural, shift:SIZE",
        "iid",
        {"metavar": "HOW"},
    ),
    ("min_examples", int, FLEET, "smallest number of examples a device may have", "1", {"metavar": "N", "min": 1}),
    (
        "mix",
        list[str],
        FLEET,
        "add a device class with its share of the fleet, as in phone-low:drop_out=0.1=0.7; repeatable. Classes: phone-low, "
        "phone-high, vehicle, gateway, even",
        "phone-high",
        {"names": ("--class",), "metavar": "CLASS[=SHARE]"},
    ),
    (
        "availability",
        str,
        FLEET,
        "when devices are online: always, diurnal, or a CSV file with a trace",
        "always",
        {"metavar": "HOW"},
    ),
    (
        "conditions",
        list[str],
        FLEET,
        "set a condition for training, such as charging=true; repeatable",
        "",
        {"names": ("--condition",), "metavar": "NAME=VALUE"},
    ),
    ("strategy", str, TRAINING, "a Flower strategy, for example fedavg, fedadam, krum", "fedavg", {"metavar": "NAME"}),
    (
        "option",
        list[str],
        TRAINING,
        "set a strategy option; repeatable",
        "",
        {"names": ("--option", "-o"), "metavar": "NAME=NUMBER"},
    ),
    ("rounds", int, TRAINING, "number of rounds", "10", {"metavar": "N", "min": 1}),
    ("epochs", int, TRAINING, "passes over a device's examples in a round", "1", {"metavar": "N", "min": 1}),
    ("max_steps", int, TRAINING, "end a device's round after N steps (0: no limit)", "", {"metavar": "N", "min": 0}),
    ("learning_rate", float, TRAINING, "learning rate of a local step (0: the task's)", "", {"metavar": "X", "min": 0}),
    ("seed", int, TRAINING, "seed of all random choices", "0", {"metavar": "N", "min": 0}),
    ("until", str, TRAINING, "stop once a held-out metric reaches a value", "", {"metavar": "METRIC>=VALUE"}),
    (
        "budget",
        list[str],
        TRAINING,
        "stop when a budget is spent: hours=2 (virtual), bytes=500MB; repeatable",
        "",
        {"metavar": "NAME=AMOUNT"},
    ),
)

TaskArgument = Annotated[Path, typer.Argument(help="task file: Python with a Keras model")]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits, mnist (or another of keras.datasets), shakespeare, a .npz or .parquet file, a folder of images",
        metavar="DATA",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FOLDER",
        help="folder for the result; an interrupted simulation continues from it [default: simulation-TASK-SEED]",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        metavar="ENGINE",
        help="training engine: auto (the fastest for the plan), native (compiled, common layers), litert, xla or ray",
        rich_help_panel=MACHINE,
    ),
]
AddressOption = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster: local (ends with the simulation), auto (one on this machine) or host:port [default: local]",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
WorkersOption = Annotated[
    int, typer.Option(metavar="N", min=0, help="threads, or Ray actors (0: one a core)", rich_help_panel=MACHINE)
]
SweepOption = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="NAME=A,B,...", help="compare several values of a setting; repeatable"),
]
SeedsOption = Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="with --sweep: seeds for each variant")]
JsonOption = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def _takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `settings` by an option a setting of a simulation and a field of its round policy."""
    own = [
        parameter(name, kind, help, panel, "" if "(0:" in help else default, **more)
        for name, kind, panel, help, default, more in OPTIONS
    ]
    policy = [
        option for option in policy_options.parameters(False, IN_A_DAY) if option.name not in _NOT_IN_VIRTUAL_TIME
    ]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        chosen = {option.name: given.pop(option.name) for option in own}
        fields = {option.name: given.pop(option.name) for option in policy}
        rules = policy_options.policy_of(fields.pop(policy_options.FILE), fields, changes=True)
        command(**given, settings={**_settings(chosen), **rules})

    kept = [option for option in inspect.signature(command).parameters.values() if option.name != "settings"]
    needed = [option for option in kept if option.default is Parameter.empty]
    every = [*needed, *own, *(option for option in kept if option not in needed), *policy]
    called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    called.__annotations__ = {option.name: option.annotation for option in every}
    return called


def _settings(chosen: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    from umbel.conditions import Rules

    option, until, spend = chosen.pop("option") or (), chosen.pop("until"), budget(chosen.pop("budget") or ())
    rules = dict(pair(text, "--condition") for text in chosen.pop("conditions") or ())
    settings = {name: value for name, value in chosen.items() if value is not None}
    if option:
        settings["options"] = dict(number_pair(text, "--option") for text in option)
    if until is not None:
        settings |= goal(until)
    if rules:
        try:
            settings["conditions"] = msgspec.convert(rules, Rules, strict=False)
        except msgspec.ValidationError as error:
            known = ", ".join(Rules.__struct_fields__)
            raise typer.BadParameter(f"{error}; conditions are {known}", param_hint="--condition") from error
    return settings | spend


@_takes_settings
def simulate(
    settings: dict[str, Any],
    task: TaskArgument,
    data: DataOption,
    output: OutputOption = None,
    engine: EngineOption = "auto",
    workers: WorkersOption = 0,
    address: AddressOption = "",
    sweep: SweepOption = None,
    seeds: SeedsOption = 1,
    json: JsonOption = False,
) -> None:
    """Train a task on virtual devices: the plan, trainer, round policy and strategies of a real fleet, in virtual time."""
    from umbel_sim.python_api import simulate as run

    if sweep:
        where = {"engine": engine, "workers": workers, "address": address}
        _sweep(task, data, settings, sweep, seeds, output, where, json)
        return
    folder = output or Path(f"simulation-{task.stem}-{settings.get('seed', 0)}")
    rounds = int(settings.get("rounds", 10))
    with _progress(rounds, quiet=json) as (told, stage):
        try:
            result = run(
                task,
                data,
                engine=engine,
                workers=workers,
                address=address,
                folder=folder,
                told=told,
                stage=stage,
                split=_show_split if not json else lambda statistics: None,
                **settings,
            )
        except KeyboardInterrupt as error:
            sentence = f"interrupted; the same command goes on from its newest checkpoint in {folder}"
            raise UmbelError(sentence) from error
    if json:
        print_json(result.summary())
    else:
        _show(result, folder)
    if result.state != "finished":
        raise UmbelError(f"the simulation {result.state}: {result.reason}; what it had is in {folder}")


@contextmanager
def _progress(rounds: int, quiet: bool) -> Iterator[tuple[Callable[[dict[str, Any]], None], Callable[[str], None]]]:
    """A live line on a terminal's stderr: the round, metrics, updates a second, what is left."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]left[/]"),
        TimeRemainingColumn(compact=True),
    )
    terminal = Console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=quiet or not terminal.is_terminal) as progress:
        bar = progress.add_task("starting", total=rounds, figures="")
        folded = began = 0.0

        def told(row: dict[str, Any]) -> None:
            nonlocal folded, began
            elapsed = progress.tasks[0].elapsed or 0.0
            if not began:
                began = elapsed
            folded += row.get("folded", 0)
            rate = folded / (elapsed - began) if elapsed > began else 0.0
            figures = [f"{name[5:]} [bold]{row[name]:.4f}[/]" for name in row if name.startswith("test_")]
            progress.update(
                bar,
                completed=row["round"],
                description=f"round [bold]{row['round']}[/]/{rounds}",
                figures="  ".join([*reversed(figures[:3]), f"{rate:,.0f} updates/s"]),
            )

        def stage(text: str) -> None:
            if text:
                progress.update(bar, description=text)

        yield told, stage


def _show_split(statistics: "Statistics") -> None:
    def spread(own: "Spread") -> str:
        if own.min == own.max:
            return f"{own.min:,}"
        return f"{own.min:,} to {own.max:,} (median {own.median:,.0f})"

    console.print(
        f"{statistics.devices:,} devices with {spread(statistics.sizes)} examples of {spread(statistics.labels)} "
        f"of {len(statistics.classes)} labels each",
        highlight=False,
    )


def _show(result: "Result", folder: Path) -> None:
    from umbel_sim.report.numbers import shown

    summary = result.summary()
    table = Table(show_header=False, box=None, padding=(0, 2))
    names = ["reason", "rounds", *(name for name in summary if name.startswith("test_"))]
    names += [name for name in ("goal", "rounds_to_goal", "virtual_hours_to_goal") if name in summary]
    names += ["virtual_hours", "updates", "bytes_down", "bytes_up", "wasted_share", "joules", "devices_that_took_part"]
    names += ["wall_seconds", "engine"]
    for name in names:
        table.add_row(f"[dim]{_LABELS.get(name, name.replace('_', ' '))}[/]", shown(name, summary[name]))
    console.print(
        f"[bold]{result.task}[/] on {result.data}, {result.settings.devices:,} virtual devices", highlight=False
    )
    console.print(table, highlight=False)
    console.print(f"report: {folder / 'report.html'}", highlight=False)


_LABELS = {
    "reason": "ended because",
    "bytes_down": "to devices",
    "bytes_up": "from devices",
    "wasted_share": "training wasted",
    "joules": "energy",
    "virtual_hours": "virtual time",
    "virtual_hours_to_goal": "virtual time to it",
    "rounds_to_goal": "rounds to it",
    "wall_seconds": "took",
}


def _sweep(
    task: Path,
    data: str,
    settings: dict[str, Any],
    sweeps: Sequence[str],
    seeds: int,
    output: Path | None,
    where: dict[str, Any],
    json: bool,
) -> None:
    from umbel_sim.python_api import sweep, variants
    from umbel_sim.report import comparison
    from umbel_sim.simulation.folder import claimed

    grid = dict(_values(text) for text in sweeps)
    count = len(list(variants(grid))) * seeds
    folder = output or Path(f"sweep-{task.stem}")
    seen: dict[str, int] = {}
    with claimed(folder), _progress(int(settings.get("rounds", 10)), quiet=json) as (told, stage):

        def heard(label: str, row: dict[str, Any]) -> None:
            seen.setdefault(label, len(seen) + 1)
            told(row)
            stage(f"{seen[label]}/{count} {label}, round {row['round']}")

        found = sweep(task, data, grid, seeds=seeds, told=heard, **where, **settings)
        stage("drawing")
        rows = comparison.save(found, folder)
    if json:
        print_json(rows)
        return
    _show_comparison(found, rows)
    console.print(f"plot: {folder / 'comparison.png'}", highlight=False)


def _values(text: str) -> tuple[str, list[Any]]:
    name, values = pair(text, "--sweep")
    found: list[Any] = []
    for value in values.split(","):
        try:
            found.append(jsonlib.loads(value))
        except ValueError:
            found.append(value)
    return _NAMES.get(name, name.replace("-", "_")), found


_NAMES = {"class": "mix", "condition": "conditions"}
"""Settings whose options are called otherwise."""


def _show_comparison(found: "Sequence[Variant]", rows: Sequence[dict[str, Any]]) -> None:
    from umbel_sim.report.numbers import shown

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*(column.replace("_", " ") for column in columns), box=None, padding=(0, 2), header_style="dim")
    for row in rows:
        table.add_row(*(shown(name, row.get(name)) for name in columns))
    console.print(table, highlight=False)
