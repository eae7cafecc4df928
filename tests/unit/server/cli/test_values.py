"""Values of options: what they mean, and what is refused."""

from typing import Any

import pytest
import typer

from umbel_server.cli import quotas
from umbel_server.cli.values import budget, checkpoint, goal, number_pair, seconds_of, size


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        ([], {}),
        (["hours=2"], {"budget_hours": 2.0}),
        (["hours=0.5, rounds=100"], {"budget_hours": 0.5, "rounds": 100}),
        (["bytes=2GB", "rounds=7"], {"budget_bytes": 2_000_000_000, "rounds": 7}),
        (["bytes=1.5 kB"], {"budget_bytes": 1500}),
        (["bytes=0"], {"budget_bytes": 0}),
    ],
)
def test_budgets(texts: list[str], settings: dict[str, Any]) -> None:
    assert budget(texts) == settings


NO_BUDGETS = """hours hours= hours=-1 hours=nan hours=inf rounds=0 rounds=1.5 bytes=2XB bytes=GB bytes=-1 bytes=1e400
    money=3 hours=1,,rounds=2 ,""".split()


@pytest.mark.parametrize("text", NO_BUDGETS)
def test_a_budget_that_is_none_is_refused_with_what_one_is(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected hours=NUMBER, rounds=NUMBER or bytes=SIZE"):
        budget([text])


def test_a_budget_is_given_once() -> None:
    with pytest.raises(typer.BadParameter, match="hours is given twice"):
        budget(["hours=1", "hours=2"])


def test_sizes_are_decimal() -> None:
    assert [size(text) for text in ("5", "5B", "5kB", "5MB", "5GB", "5TB")] == [5, 5, 5e3, 5e6, 5e9, 5e12]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("", {}),
        ("latest", {"from_run": "latest"}),
        ("a1b2@0", {"from_run": "a1b2", "from_round": 0}),
        ("latest@12", {"from_run": "latest", "from_round": 12}),
    ],
)
def test_checkpoints_to_start_from(text: str, source: dict[str, Any]) -> None:
    assert checkpoint(text) == source


@pytest.mark.parametrize("text", ["@", "@3", "a@", "a@b", "a@-1", "a@1@2", "a@²"])
def test_a_checkpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected RUN or RUN@ROUND"):
        checkpoint(text)


def test_goals_and_pairs() -> None:
    assert goal(" accuracy >= 0.97 ") == {"until": "accuracy", "at_least": 0.97}
    assert goal("") == {"until": "", "at_least": 0.0}
    assert number_pair("eta=0.1", "-o") == ("eta", 0.1)
    for text in ("better", ">=1", "accuracy>=", "accuracy>=much", "accuracy>=nan"):
        with pytest.raises(typer.BadParameter, match="expected METRIC>=VALUE"):
            goal(text)
    for text in ("eta", "eta=", "eta=x", "eta=inf"):
        with pytest.raises(typer.BadParameter, match="expected NAME=NUMBER"):
            number_pair(text, "-o")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("30min", 1800), ("1.5h", 5400), (" 7d ", 604_800), ("2w", 1_209_600)],
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text, "--since") == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "h", "-3d", "0h", "1e5s", "nan", "infd", "3y", "1h30m", "1 h", "9999999999s"]
)
def test_a_span_that_is_none_is_refused_with_what_one_is(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a span of time such as 90s"):
        seconds_of(text, "--since")


@pytest.mark.parametrize("text", ["1_000", "\N{ARABIC-INDIC DIGIT THREE}", "\N{FULLWIDTH DIGIT THREE}"])
def test_digits_are_plain_ones(text: str) -> None:
    for read in (
        lambda: size(f"{text}MB"),
        lambda: budget([f"rounds={text}"]),
        lambda: budget([f"hours={text}"]),
        lambda: number_pair(f"mu={text}", "--option"),
        lambda: seconds_of(f"{text}h", "--since"),
        lambda: quotas.limit(text, "--devices"),
    ):
        with pytest.raises((ValueError, typer.BadParameter)):
            read()
