"""Commands about quotas of populations: quota set|show."""

from typing import Annotated, Any

import typer

from umbel.errors import UmbelError
from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import plain, print_json, print_table, size_text
from umbel_server.cli.values import size, written

NONE = "none"
HELP = f"a number such as 10GB, or {NONE} for no limit"


def add_commands(app: typer.Typer) -> None:
    """Add the group quota."""
    quota = typer.Typer(no_args_is_help=True, help="Set and show quotas of populations.")
    quota.command("set")(set_quota)
    quota.command("show")(show_quota)
    app.add_typer(quota, name="quota")


def set_quota(
    population: Annotated[str, typer.Option("--population", "-p", help="the population")],
    devices: Annotated[str, typer.Option(metavar="N", help=f"devices enrolled, or {NONE}", show_default=False)] = "",
    storage: Annotated[str, typer.Option(metavar="SIZE", help=f"bytes stored: {HELP}", show_default=False)] = "",
    bytes_per_day: Annotated[
        str, typer.Option(metavar="SIZE", help=f"bytes up and down over HTTP a day (UTC): {HELP}", show_default=False)
    ] = "",
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Set quotas of a population; quotas that are not named stay as they are."""
    body = {
        name: limit(text, option)
        for name, text, option in (
            ("devices", devices, "--devices"),
            ("storage", storage, "--storage"),
            ("bytes_per_day", bytes_per_day, "--bytes-per-day"),
        )
        if text
    }
    if not body:
        raise typer.BadParameter("name what to limit: --devices, --storage or --bytes-per-day")
    row = open_client(state).quotas.set(population, body)
    if json:
        print_json(row)
    else:
        _print([row])


def show_quota(
    population: Annotated[str, typer.Option("--population", "-p", help="only this population")] = "",
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Show the usage and the quotas of populations."""
    client = open_client(state)
    rows = [client.quotas.show(population)] if population else client.quotas.list()
    if json:
        print_json(rows)
    else:
        _print(rows)


def limit(text: str, option: str) -> int | None:
    """The limit that `option` names: a number, a size, or `none` for no limit; raises BadParameter."""
    if text == NONE:
        return None
    try:
        value = int(written(text)) if option == "--devices" else size(text)
        if value < 0:
            raise ValueError(text)
    except (ValueError, UmbelError) as error:
        expected = "a number" if option == "--devices" else "a size such as 500MB or 10GB"
        raise typer.BadParameter(f"expected {expected}, or {NONE}; got {text!r}", param_hint=option) from error
    return value


def _print(rows: list[answers.Quota]) -> None:
    print_table(
        ("population", "devices", "stored", "transferred today (UTC)", "refused"),
        (
            (
                plain(row.population),
                _of(f"{row.devices:,}", row.devices_limit, lambda value: f"{value:,}"),
                _of(size_text(row.storage), row.storage_limit, size_text),
                _of(size_text(row.bytes_down_today + row.bytes_up_today), row.bytes_per_day_limit, size_text),
                ", ".join(f"{count:,} {plain(what)}" for what, count in sorted(row.refused.items())) or "-",
            )
            for row in rows
        ),
        "No population has devices, blobs or quotas yet.",
    )


def _of(used: str, limit: int | None, text: Any) -> str:
    return used if limit is None else f"{used} of {text(limit)}"
