"""The reference of `umbel-agent` and of its configuration, from the program itself."""

import argparse

from docs.hooks.markdown import COMMENT, code, sentence, table
from umbel_edge.cli import enrol
from umbel_edge.cli import make_parser as agent_parser
from umbel_edge.config import EXAMPLE


def command_page() -> str:
    """The page of the command, in Markdown."""
    lines = [
        COMMENT,
        "# `umbel-agent`",
        "",
        "The agent has two commands. `umbel-agent enrol` makes a device known to a server, once. `umbel-agent FILE` runs the agent.",
        "",
    ]
    for parser in (agent_parser(), enrol.make_parser()):
        lines += [f"## `{parser.prog}`", "", sentence(parser.description or ""), ""]
        lines += ["```text", _usage(parser), "```", ""]
        actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        arguments = [action for action in actions if not action.option_strings]
        options = [action for action in actions if action.option_strings]
        lines += table(("argument", "meaning"), [(code(one.dest.upper()), one.help or "") for one in arguments])
        lines += table(("option", "meaning"), [(_names(one), one.help or "") for one in options])
    return "\n".join(lines)


def settings_page() -> str:
    """The page of `agent.toml`, in Markdown: the example that the agent prints, in which every key is explained."""
    return "\n".join(
        [
            COMMENT,
            "# `agent.toml`",
            "",
            "This is the example that `umbel-agent --example` prints. It explains every key. "
            "`umbel-agent enrol` writes such a file. `umbel-agent agent.toml --check` checks one. "
            "An unknown key is an error. Paths are relative to the file.",
            "",
            '```toml title="agent.toml"',
            EXAMPLE.rstrip(),
            "```",
            "",
        ]
    )


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _names(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    if action.nargs == 0:
        return names
    values = "|".join(action.choices) if action.choices else (action.metavar or action.dest.upper())
    return f"{names} `{values}`"
