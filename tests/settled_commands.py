"""Commands until they have their final state, as the API shows them."""

import time
from typing import Any

from umbel_server.client import FINAL, Client


def settled(client: Client, commands: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The commands as they are once all have their final state, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while any(command["state"] not in FINAL for command in commands) and time.monotonic() < deadline:
        time.sleep(0.05)
        commands = [client.get(f"/v1/commands/{command['id']}") for command in commands]
    return commands
