"""The server on this machine: init, serve."""

from pathlib import Path
from typing import Annotated

import typer

from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import console, plain, print_json
from umbel_server.state_folder import MOST_PORT, Config, Enrolment, Http, Mqtt, init_state, open_state


def add_commands(app: typer.Typer) -> None:
    """Add init and serve."""
    app.command()(init)
    app.command()(serve)


def init(
    folder: Annotated[Path, typer.Argument(help="a new folder for the server's state")] = DEFAULT_STATE,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=MOST_PORT, help="port of the API and the blobs")] = 8470,
    mqtt_host: Annotated[str, typer.Option(help="the broker's address")] = "127.0.0.1",
    mqtt_port: Annotated[int, typer.Option(min=1, max=MOST_PORT, help="the broker's port")] = 1883,
    external_broker: Annotated[bool, typer.Option(help="use a broker that already runs")] = False,
    hostname: Annotated[
        list[str] | None, typer.Option(help="a name or address at which devices reach this server; repeatable")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="no TLS: for trying things out on one machine")] = False,
    insecure_broker: Annotated[
        bool, typer.Option("--insecure-broker", help="no TLS on MQTT: for a broker that cannot speak it")
    ] = False,
    open_enrolment: Annotated[
        bool,
        typer.Option("--open-enrolment", help="insecure: let any device enrol, with one token that never expires"),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a server's state folder: configuration, keys, tokens."""
    tls = not insecure
    mqtt = Mqtt(mqtt_host, mqtt_port, not external_broker, tls=tls and not insecure_broker)
    http, enrolment = Http(host, port, tls), Enrolment(open_enrolment)
    state = init_state(folder, Config(http=http, mqtt=mqtt, enrolment=enrolment, hostnames=hostname or []))
    if json:
        token = {"enrolment_token": state.enrolment_token} if open_enrolment else {}
        print_json({"state": str(folder), "server": state.server_url, **token})
        return
    console.print(f"The server's state is in [bold]{plain(str(folder))}[/]. Next:")
    console.print(f"  umbel serve --state {plain(str(folder))}", highlight=False)
    if not open_enrolment:
        console.print(
            "and make a token for each device. It works once, and it proves the server to the device as well:"
        )
        console.print(f"  umbel devices invite --population NAME --state {plain(str(folder))}", highlight=False)
        return
    console.print("and give each device this enrolment token (it proves the server to the device as well):")
    console.print(f"  {state.enrolment_token}", highlight=False, soft_wrap=True)
    console.print("[yellow]This token lets any device enrol, in any population, for ever.[/]")


def serve(
    state: StateOption = DEFAULT_STATE,
    log: Annotated[Path | None, typer.Option(help="write the log to this file")] = None,
    verbose: Annotated[bool, typer.Option(help="log more")] = False,
) -> None:
    """Run the server until it is interrupted."""
    opened = open_state(state)  # before the server's libraries, which take seconds to import
    from umbel_server import serve as process

    process.set_up_logging(log, verbose)
    process.serve(opened)
