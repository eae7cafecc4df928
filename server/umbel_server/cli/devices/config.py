"""The configuration file of a new device."""

from typing import Annotated

import tomli_w
import typer

from umbel.topics import check_name
from umbel_server.cli.devices import invitations
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import (
    DEFAULT_STATE,
    StateOption,
)


def print_config(
    device: Annotated[str, typer.Argument(help="the new device's id")],
    population: Annotated[str, typer.Option("--population", "-p", help="its population")],
    kind: Annotated[str, typer.Option(help="phone, vehicle or gateway")] = "phone",
    examples: Annotated[str, typer.Option(help="the device's .npz of examples, relative to the file")] = "examples.npz",
    expires: Annotated[str, typer.Option(help="how long it may enrol: 90s, 30m, 24h, 7d")] = "24h",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Print a configuration file with an invitation for a new device."""
    client = open_client(state)
    check_name(device, "a device id")
    (made,) = invitations.ask_for(client, population, 1, expires, [], kind)
    config = {
        "device": device,
        "population": population,
        "kind": kind,
        "server": client.url,
        "enrolment_token": made.token,
        "examples": examples,
        "state": "state",
    }
    print(tomli_w.dumps(config), end="")
