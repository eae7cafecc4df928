"""The `umbel` command without the packages of its commands: its help says which extra to install."""

import sys
from collections.abc import Sequence

from umbel import __version__

HELP = """\
Usage: umbel [--version] [--help] COMMAND [ARGS]...

Federated learning from edge to cloud: compile a Keras task, train it on a fleet, ship the model.

The commands are not installed yet. Install what this machine is for:

  pip install 'umbel[server]'        run a server and its fleet: init, serve, devices, runs, releases, ...
  pip install 'umbel[server,keras]'  the same, and compile Keras tasks into plans: compile
  pip install 'umbel[sim]'           all of it, and the simulations: demo, simulate, split
  pip install umbel-edge             a device: the program umbel-agent, without the rest of Umbel
"""


def answer(words: Sequence[str], missing: str) -> int:
    """Print the help, the version, or the reason that a command is missing; `missing` names the package.

    Returns the exit code: 0 for help and version, 1 for a command, 2 without arguments.
    """
    if "--help" in words or not words:
        print(HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"umbel {__version__}")
        return 0
    print(f"umbel: {missing} is not installed; the commands need: pip install 'umbel[server]'", file=sys.stderr)
    return 1
