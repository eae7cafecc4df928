"""Commands about the MQTT broker: run the embedded one on its own, configure another one."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from umbel.errors import UmbelError
from umbel_server.broker import emqx, mosquitto
from umbel_server.broker.files import Broker, names_of
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, StateOption
from umbel_server.cli.output import console, plain, print_json
from umbel_server.state_folder import CONFIG, MOST_PORT, open_state

CONFIGURED = {"mosquitto": mosquitto, "emqx": emqx}
"""Brokers for which a configuration can be written."""


def add_commands(app: typer.Typer) -> None:
    """Add the group broker."""
    broker = typer.Typer(no_args_is_help=True, help="Run the embedded MQTT broker, or configure another one.")
    broker.command("run")(run)
    broker.command("config")(config)
    app.add_typer(broker, name="broker")


def run(
    port: Annotated[int, typer.Option(min=0, max=MOST_PORT, help="port to listen on; 0 picks a free one")] = 1883,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    state: StateOption = DEFAULT_STATE,
    insecure: Annotated[bool, typer.Option("--insecure", help="without TLS; needs no state folder")] = False,
) -> None:
    """Run the embedded MQTT 5 broker on its own until it is interrupted, with the certificate of a state folder."""
    from umbel_server import serve as process
    from umbel_server.broker.embedded import EmbeddedBroker

    process.set_up_logging(None, False)
    process.end_on_sigterm()
    tls = None
    if not insecure:
        opened = open_state(state)
        opened.keep_certificate()
        tls = opened.folder
    embedded = EmbeddedBroker(host, port, tls)
    embedded.start()
    try:
        print(f"MQTT 5 on {host}:{embedded.port}", flush=True)
        threading.Event().wait()
    finally:
        embedded.stop()


def config(
    kind: Annotated[str, typer.Argument(help="mosquitto or emqx")],
    folder: Annotated[Path, typer.Argument(help="a folder to write its configuration, certificate and key into")],
    port: Annotated[int, typer.Option(min=1, max=MOST_PORT, help="port to listen on")] = 8883,
    host: Annotated[str, typer.Option(help="address to listen on")] = "0.0.0.0",  # noqa: S104
    hostname: Annotated[
        list[str] | None, typer.Option(help="a name or address at which devices reach it; repeatable")
    ] = None,
    user: Annotated[
        str, typer.Option(help="user to run as when root starts it (default: mosquitto, if it can reach the folder)")
    ] = "",
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Write a broker's configuration: TLS, device certificates, and access rules that give each device its own topics."""
    if (broker := CONFIGURED.get(kind)) is None:
        raise typer.BadParameter(f"a configuration can be written for {' or '.join(CONFIGURED)}, not for {kind!r}")
    opened = open_state(state)
    if not opened.tls:
        raise UmbelError(
            f"{state}: this server has no authority that could certify a broker; make one without --insecure"
        )
    asked = Broker(host, port, hostname or [], user)
    path = broker.write_config(opened, folder, asked)
    if json:
        print_json({"config": str(path)})
        return
    for line in broker.start_of(path):
        console.print(plain(line), highlight=False, soft_wrap=True)
    console.print(
        f"and name it in {plain(str(opened.folder / CONFIG))}, under \\[mqtt]: embedded = false, host, port = {port}, and the "
        "advertised_host that devices are told if it is another. Its certificate is for "
        f"{plain(', '.join(names_of(opened, asked)))}.",
        highlight=False,
    )
