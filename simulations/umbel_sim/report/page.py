"""report.html: one file that holds everything, pictures included."""

import base64
import html
from collections.abc import Mapping
from typing import Any

from umbel_sim.report.numbers import shown
from umbel_sim.simulation.outcome import Outcome

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1f2933; margin: 0; background: #f5f7fa; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 12px; }
.sub { color: #52606d; margin: 0 0 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; }
.card { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 12px 14px; }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; } .card span { color: #52606d; font-size: 13px; }
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.pictures img { width: 100%; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; box-sizing: border-box; padding: 8px; }
.pictures .wide { grid-column: 1 / -1; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; width: 100%; }
td { padding: 5px 14px; border-top: 1px solid #f0f2f5; font-variant-numeric: tabular-nums; } td:first-child { color: #52606d; width: 40%; }
.failed { color: #c0392b; } @media (max-width: 720px) { .pictures { grid-template-columns: 1fr; } }
"""
_WIDE = ("learning", "data")


def page(outcome: Outcome, pictures: Mapping[str, bytes]) -> str:
    """The page; `pictures` are PNG bytes by name."""
    summary = outcome.summary()
    images = "".join(
        f'<img class="{"wide" if name in _WIDE else ""}" alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    )
    state = (
        f'<span class="{html.escape(outcome.state)}">{html.escape(outcome.state)}: {html.escape(outcome.reason)}</span>'
    )
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(outcome.task)} on {html.escape(outcome.data)} - Umbel simulation</title>"
        f"<style>{_STYLE}</style><main><h1>{html.escape(outcome.task)} on {html.escape(outcome.data)}</h1>"
        f"<p class=sub>{outcome.settings.devices:,} virtual devices, {html.escape(outcome.settings.partition)}, "
        f"{html.escape(outcome.settings.strategy)}, seed {outcome.settings.seed} - {state}</p>"
        f"<div class=cards>{_cards(outcome, summary)}</div><h2>Pictures</h2><div class=pictures>{images}</div>"
        f"<h2>Figures</h2>{_table(summary)}<h2>Settings</h2>{_table(_flat(outcome))}</main></html>\n"
    )


def _cards(outcome: Outcome, summary: Mapping[str, Any]) -> str:
    cards = [(shown(f"test_{outcome.metric}", summary.get(f"test_{outcome.metric}")), f"held-out {outcome.metric}")]
    if summary.get("goal"):
        cards.append((shown("rounds", summary["rounds_to_goal"]), f"rounds to {summary['goal']}"))
    cards += [
        (shown("rounds", summary["rounds"]), "rounds"),
        (shown("virtual_hours", summary["virtual_hours"]), "virtual time"),
        (shown("bytes_up", summary["bytes_down"] + summary["bytes_up"]), "travelled"),
        (shown("wasted_share", summary["wasted_share"]), "of training wasted"),
        (shown("joules", summary["joules"]), "energy on devices"),
    ]
    return "".join(
        f"<div class=card><b>{html.escape(value)}</b><span>{html.escape(what)}</span></div>" for value, what in cards
    )


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{html.escape(shown(name, value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _flat(outcome: Outcome) -> dict[str, Any]:
    import msgspec

    settings = msgspec.to_builtins(outcome.settings)
    return {**{name: value for name, value in settings.items() if name != "policy"}, **settings["policy"]}
