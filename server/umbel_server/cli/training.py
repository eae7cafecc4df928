"""Commands about training: runs start|list|show|watch|stop."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from umbel.errors import UmbelError
from umbel_server.cli.show import (
    DEFAULT_STATE,
    JsonOption,
    RunArgument,
    StateOption,
    ago,
    console,
    metrics_text,
    print_json,
    print_table,
)
from umbel_server.client import Client

WATCH_SECONDS = 0.25


def add_commands(app: typer.Typer) -> None:
    """Add the group runs."""
    runs = typer.Typer(no_args_is_help=True, help="Start, watch and stop runs.")
    runs.command("start")(start)
    runs.command("list")(list_runs)
    runs.command("show")(show_run)
    runs.command("watch")(watch)
    runs.command("stop")(stop)
    app.add_typer(runs, name="runs")


def start(
    plan: Annotated[Path, typer.Argument(help="a plan made by 'umbel compile'")],
    population: Annotated[str, typer.Option("--population", "-p", help="which devices train")],
    strategy: Annotated[str, typer.Option(help="a Flower strategy, for example fedavg, fedadam, krum")] = "fedavg",
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="NAME=NUMBER for the strategy")] = None,
    rounds: Annotated[int, typer.Option(help="rounds to train")] = 10,
    fraction: Annotated[float, typer.Option(help="share of the online devices in a round")] = 1.0,
    minimum: Annotated[int, typer.Option(help="devices a round needs at least")] = 1,
    epochs: Annotated[int, typer.Option(help="passes over a device's examples in a round")] = 1,
    max_steps: Annotated[int, typer.Option(help="end a device's round after this many steps (0: no limit)")] = 0,
    learning_rate: Annotated[float, typer.Option(help="of a local step (0: the plan's)")] = 0.0,
    seed: Annotated[int, typer.Option(help="orders devices and examples")] = 0,
    deadline: Annotated[float, typer.Option(help="seconds a round may take")] = 120.0,
    held_out: Annotated[Path | None, typer.Option(help="an .npz to evaluate every checkpoint on")] = None,
    until: Annotated[str, typer.Option(help="METRIC>=VALUE on the held-out examples ends the run early")] = "",
    follow: Annotated[bool, typer.Option("--watch", help="watch the run until it ends")] = False,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Start a run: train a plan on a population."""
    client = Client.of_state(state)
    metric, at_least = _goal(until)
    settings: dict[str, Any] = {
        "strategy": strategy,
        "options": dict(_pair(text) for text in option or []),
        "rounds": rounds,
        "fraction": fraction,
        "minimum": minimum,
        "epochs": epochs,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "deadline": deadline,
        "until": metric,
        "at_least": at_least,
    }
    if held_out is not None:
        if not held_out.is_file():
            raise UmbelError(f"{held_out}: no such file of held-out examples")
        settings["held_out"] = client.put_blob(held_out.read_bytes())
    body = {"population": population, "plan": client.add_plan(plan)["plan"], "settings": settings}
    row = client.post("/v1/runs", body)
    if json:
        print_json(row)
    else:
        console.print(
            f"run [bold]{row['id']}[/] trains {row['task']} on {population}; see 'umbel runs watch {row['id']}'"
        )
    if follow:
        _watch(client, row["id"])


def _pair(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise typer.BadParameter(f"expected NAME=NUMBER, got {text!r}") from error


def _goal(text: str) -> tuple[str, float]:
    if not text:
        return "", 0.0
    metric, sign, value = text.partition(">=")
    try:
        return metric.strip(), float(value if sign else "")
    except ValueError as error:
        raise typer.BadParameter(f"expected METRIC>=VALUE such as accuracy>=0.97, got {text!r}") from error


def list_runs(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """List the runs, newest first."""
    rows = Client.of_state(state).get("/v1/runs")
    if json:
        print_json(rows)
        return
    print_table(
        ("run", "task", "population", "strategy", "round", "state", "started"),
        (
            (
                row["id"],
                row["task"],
                row["population"],
                row["strategy"],
                f"{row['round']}/{row['rounds']}",
                row["state"],
                ago(row["created"]),
            )
            for row in rows
        ),
        "No runs yet; start one with 'umbel runs start PLAN -p POPULATION'.",
    )


def show_run(
    run: RunArgument,
    round: Annotated[int | None, typer.Option(help="whose assignments to show (default: the newest)")] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Show a run: its checkpoints, and who did what in a round."""
    row = Client.of_state(state).get(f"/v1/runs/{run}", round=round)
    if json:
        print_json(row)
        return
    _print_head(row)
    print_table(
        ("round", "held out", "fleet", "devices", "seconds"),
        (
            (
                str(checkpoint["round"]),
                metrics_text(checkpoint["metrics"]),
                metrics_text(checkpoint["fleet_metrics"]),
                str(checkpoint["contributors"]),
                f"{checkpoint['committed'] - checkpoint['started']:.2f}",
            )
            for checkpoint in row["checkpoints"]
        ),
        "No checkpoint yet.",
    )
    console.print()
    print_table(
        ("device", "round", "state", "since", "examples", "seconds", "why"),
        (
            (
                a["device"],
                str(a["round"]),
                a["state"],
                ago(a["since"]),
                str(a["examples"]),
                f"{a['seconds']:.2f}",
                a["reason"],
            )
            for a in row["assignments"]
        ),
        "No assignments yet.",
    )


def watch(run: RunArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Watch a run live until it ends; fails when the run does."""
    _watch(Client.of_state(state), run)


def _watch(client: Client, run: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[news]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("round", total=None, news="")
        while True:
            row = client.get(f"/v1/runs/{run}")
            newest = row["checkpoints"][-1] if row["checkpoints"] else {"metrics": {}}
            states: dict[str, int] = {}
            for assignment in row["assignments"]:
                states[assignment["state"]] = states.get(assignment["state"], 0) + 1
            news = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            progress.update(
                bar,
                total=row["rounds"],
                completed=row["round"],
                description=f"round {row['round']}/{row['rounds']}",
                news=f"{metrics_text(newest['metrics'])}  {news}",
            )
            if row["state"] != "running":
                break
            time.sleep(WATCH_SECONDS)
    _print_head(row)
    if row["state"] == "failed":
        raise typer.Exit(1)


def stop(run: RunArgument, state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """Stop a run; its checkpoints stay."""
    row = Client.of_state(state).post(f"/v1/runs/{run}/stop")
    if json:
        print_json(row)
    else:
        _print_head(row)


def _print_head(row: dict[str, Any]) -> None:
    reason = f": {row['reason']}" if row["reason"] else ""
    console.print(
        f"run [bold]{row['id']}[/] ({row['task']}, {row['strategy']}): {row['state']} after {row['round']} of "
        f"{row['rounds']} rounds{reason}",
        highlight=False,
    )
