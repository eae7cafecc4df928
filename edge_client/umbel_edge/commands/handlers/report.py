"""Reporting what the device is and holds."""

import sys

from umbel import __version__
from umbel.litert import runtime_name
from umbel.messages import Report, Reported
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.device.sensors import resident_mb

HEAVY = ("tensorflow", "flwr")
"""Packages that an agent should do without: a report names those that its process has loaded."""


def report(context: HandlerContext, command: str, body: Report) -> Reported:
    """Describe this device and its process."""
    installed = context.models.installed
    return Reported(
        kind=context.config.kind,
        trainer=context.config.trainer,
        runtime=runtime_name(),
        agent=__version__,
        examples=context.count_examples(),
        rounds=context.state.rounds,
        rss_mb=resident_mb(),
        imports=[name for name in HEAVY if name in sys.modules],
        installed=installed.release if installed is not None else "",
        variant=installed.variant if installed is not None else "",
    )
