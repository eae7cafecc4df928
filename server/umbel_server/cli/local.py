"""Commands that work on this machine: init, serve, compile."""

import math
from pathlib import Path
from typing import Annotated

import typer

from umbel.keras_import import import_keras
from umbel.plan import Plan
from umbel.task import load_task
from umbel_server.cli.compile_progress import progress_of
from umbel_server.cli.output import DEFAULT_STATE, StateOption, console, plain, print_json, size_text
from umbel_server.state_folder import MOST_PORT, Config, Enrolment, Http, Mqtt, init_state, open_state


def add_commands(app: typer.Typer) -> None:
    """Add init, serve and compile."""
    app.command()(init)
    app.command()(serve)
    app.command("compile")(compile_)


def init(
    folder: Annotated[Path, typer.Argument(help="a new folder for the server's state")] = DEFAULT_STATE,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=MOST_PORT, help="port of the API and the blobs")] = 8470,
    mqtt_host: Annotated[str, typer.Option(help="the broker's address")] = "127.0.0.1",
    mqtt_port: Annotated[int, typer.Option(min=1, max=MOST_PORT, help="the broker's port")] = 1883,
    external_broker: Annotated[bool, typer.Option(help="use a broker that runs already; start none")] = False,
    hostname: Annotated[
        list[str] | None, typer.Option(help="a name or address at which devices reach this server; may be repeated")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="no TLS: for trying things out on one machine")] = False,
    insecure_broker: Annotated[
        bool, typer.Option("--insecure-broker", help="no TLS on MQTT: for a broker that cannot speak it")
    ] = False,
    open_enrolment: Annotated[
        bool,
        typer.Option("--open-enrolment", help="insecure: let any device enrol, with one token that never expires"),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
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
        console.print("and a token for each device, good once (it proves the server to the device as well):")
        console.print(f"  umbel devices invite --population NAME --state {plain(str(folder))}", highlight=False)
        return
    console.print("and give each device this enrolment token (it proves the server to the device as well):")
    console.print(f"  {state.enrolment_token}", highlight=False, soft_wrap=True)
    console.print("[yellow]Whoever has it may enrol as any device, in any population, for ever.[/]")


def serve(
    state: StateOption = DEFAULT_STATE,
    log: Annotated[Path | None, typer.Option(help="write the log to this file")] = None,
    verbose: Annotated[bool, typer.Option(help="log more")] = False,
) -> None:
    """Run the server until it is interrupted."""
    from umbel_server import serve as process

    opened = open_state(state)
    process.set_up_logging(log, verbose)
    process.serve(opened)


def compile_(
    file: Annotated[Path, typer.Argument(help="a Python file that defines one umbel.Task")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the plan to write (default: NAME.plan)")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the initial weights")] = 0,
    check: Annotated[bool, typer.Option(help="compare ten training steps with Keras, and fail if they differ")] = True,
    min_runtime: Annotated[
        str, typer.Option(help="oldest LiteRT or tflite-runtime of the devices; an op that needs a newer one is named")
    ] = "2.14",
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Compile a task into a plan that devices train without TensorFlow."""
    if file.is_file():
        import_keras()
    task = load_task(file)
    path = output or Path(f"{task.name}.plan")
    from umbel_server.compiler import compile_task

    with progress_of(task.name) as progress:
        plan = compile_task(task, path, seed=seed, check=check, min_runtime=min_runtime, progress=progress)
    if json:
        manifest = plan.manifest
        print_json({"plan": str(path), "sha256": plan.sha256, "parity": manifest.parity, "worst": manifest.worst})
        return
    _print_plan(plan)


def _print_plan(plan: Plan) -> None:
    weights = sum(math.prod(weight.shape) for weight in plan.manifest.weights)
    console.print(f"[bold]{plain(str(plan.path))}[/]: {weights:,} weights in {len(plan.manifest.weights)} tensors")
    for name, file in sorted(plan.manifest.files.items()):
        console.print(f"  {plain(name):22} {size_text(file.size):>10}", highlight=False)
    for quantity, error in plan.manifest.parity.items():
        worst = plan.manifest.worst.get(quantity, "")
        which = f" ({plain(worst)})" if error > 0 and worst else ""
        console.print(f"  differs from Keras by at most {error:.1e} in {quantity}{which}", highlight=False)
