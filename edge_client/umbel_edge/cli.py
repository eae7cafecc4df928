"""`umbel-agent`: the agent as a program."""

import argparse
import logging
import signal
import sys
import traceback
from pathlib import Path

from umbel.errors import UmbelError
from umbel_edge.config import EXAMPLE, load_config


def main() -> None:
    """Run the agent until SIGTERM or SIGINT; exit code 0, 1 for a failure, 2 for wrong usage."""
    if sys.argv[1:2] == ["enrol"]:
        from umbel_edge import enrol_command

        options = enrol_command.options_of(sys.argv[2:])
        try:
            enrol_command.run(options)
        except UmbelError as error:
            _fail(error, 1, options.debug)
        return
    parser = argparse.ArgumentParser(
        prog="umbel-agent",
        description="Train, install and infer on this device, as the Umbel server commands.",
        epilog="'umbel-agent enrol URL TOKEN' makes this device known to a server and writes its configuration, a TOML "
        "file; --example prints one with every key explained.",
    )
    parser.add_argument("config", type=Path, nargs="?", help="the configuration file")
    parser.add_argument("--example", action="store_true", help="print an example configuration and exit")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--log", type=Path, help="write the log to this file instead of standard error")
    parser.add_argument("--verbose", action="store_true", help="log more")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()
    if options.example:
        print(EXAMPLE, end="")
        return
    if options.config is None:
        parser.error("name a configuration file, or --example to see one")
    try:
        config = load_config(options.config)
    except UmbelError as error:
        _fail(error, 2, options.debug)
    if options.check:
        print(f"{options.config}: device {config.device} of population {config.population}, trainer {config.trainer}")
        return
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        **({"filename": options.log} if options.log else {"stream": sys.stderr}),
    )
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    from umbel_edge.agent import Agent

    try:
        agent = Agent(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.run()
    except UmbelError as error:
        _fail(error, 1, options.debug)


def _fail(error: UmbelError, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"umbel-agent: {error}", file=sys.stderr)
    sys.exit(code)
