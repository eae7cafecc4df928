"""The group devices."""

import typer

from umbel_server.cli.devices import config, invitations, lifecycle, show


def add_commands(app: typer.Typer) -> None:
    """Add the group devices."""
    devices = typer.Typer(no_args_is_help=True, help="Invite, list and manage devices.")
    devices.command("list")(show.list_devices)
    devices.command("show")(show.show_device)
    devices.command("readmit")(lifecycle.readmit)
    devices.command("config")(config.print_config)
    devices.command("invite")(invitations.invite)
    devices.command("invitations")(invitations.list_invitations)
    devices.command("uninvite")(invitations.uninvite)
    for decide in (
        lifecycle.suspend,
        lifecycle.resume,
        lifecycle.revoke,
        lifecycle.rename,
        lifecycle.label,
        lifecycle.delete,
    ):
        devices.command()(decide)
    app.add_typer(devices, name="devices")
