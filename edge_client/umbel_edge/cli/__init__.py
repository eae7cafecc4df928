"""`umbel-agent`: the agent as a program."""

import argparse
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from umbel import __version__, logs
from umbel.errors import UmbelError
from umbel.installed import check_distributions
from umbel.printable import printable
from umbel_edge.cli.signals import stop_on_signals
from umbel_edge.config import EXAMPLE, load_config


def main() -> None:
    """Run the agent until SIGTERM or SIGINT; exit code 0, 1 for a failure, 2 for wrong usage.

    An error is shown as one line, also when a file cannot be read or written; `--debug` adds the traceback.
    """
    if sys.argv[1:2] == ["enrol"]:
        with _errors_in_a_line(1, "--debug" in sys.argv):
            check_distributions()
            from umbel_edge.cli import enrol as enrol_command

        options = enrol_command.options_of(sys.argv[2:])
        with _errors_in_a_line(1, options.debug):
            enrol_command.run(options)
        return
    parser = make_parser()
    options = parser.parse_args()
    if options.example:
        print(EXAMPLE, end="")
        return
    if options.config is None:
        parser.error("give a configuration file; --example prints one")
    with _errors_in_a_line(2, options.debug):
        config = load_config(options.config)
    if options.check:
        print(f"{options.config}: device {config.device} of population {config.population}, trainer {config.trainer}")
        return
    with _errors_in_a_line(1, options.debug):
        check_distributions()
        set_up_logging(options.log, options.verbose)
        from umbel_edge.agent import Agent

        agent = Agent(config)
        stop_on_signals(agent.stop)
        agent.run()


def make_parser() -> argparse.ArgumentParser:
    """The options of `umbel-agent` without a subcommand."""
    parser = argparse.ArgumentParser(
        prog="umbel-agent",
        description="Run the agent on this device: it trains, evaluates, installs and infers as the Umbel server commands.",
        epilog="'umbel-agent enrol URL TOKEN' enrols this device with a server and writes its configuration file (TOML); "
        "--example prints a configuration file that explains every key.",
    )
    parser.add_argument("config", type=Path, nargs="?", help="the configuration file")
    parser.add_argument("--example", action="store_true", help="print an example configuration file and exit")
    parser.add_argument("--check", action="store_true", help="check the configuration file and exit")
    parser.add_argument("--log", type=Path, help="write the log to this file instead of standard error")
    parser.add_argument("--verbose", action="store_true", help="log debug messages too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"umbel-agent {__version__}")
    return parser


def set_up_logging(file: Path | None, verbose: bool) -> None:
    """Log lines with time and level to `file`, or to standard error."""
    logs.set_up_logging(file, verbose)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


@contextmanager
def _errors_in_a_line(code: int, debug: bool) -> Iterator[None]:
    """On an error that a person can act on, show it as one line and exit with `code`."""
    try:
        yield
    except UmbelError as error:
        _fail(str(error), code, debug)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _fail(f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}", code, debug)
    except ImportError as error:
        if (error.name or "umbel").partition(".")[0] in ("umbel", "umbel_edge"):
            raise
        _fail(f"{error.name} is not installed; the agent needs: pip install 'umbel[edge]' or umbel-edge", code, debug)
    except KeyboardInterrupt:
        _fail("interrupted", 130, debug)


def _fail(sentence: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(f"umbel-agent: {printable(sentence)}", file=sys.stderr)
    sys.exit(code)
