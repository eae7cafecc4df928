"""How much a device may say: its outcome gets through whatever it says beside it."""

import msgspec
import pytest

from umbel import messages, signing
from umbel.errors import MessageError
from umbel.messages import INLINE_MAX, MOST_COUNT, Ack, Answered, Blob, Exported, Reported, Result, Status, Trained
from umbel.sizes import ENTRIES, METRICS, NUMBERS, SENTENCE, WORD, check_labels
from umbel_server.commands.expected_outcome import check_outcome
from umbel_server.commands.kinds import KINDS

KEY = signing.generate_key()
LONG = "x" * 2000
MANY = [LONG] * 9 + ["x"] * 100


def unbounded(message: Ack | Status | Result) -> bytes:
    """As a device signs that keeps to no limits."""
    channel = type(message).__name__.lower()
    addressed = msgspec.structs.replace(message, topic=f"umbel/1/p/d/{channel}")
    return signing.sign_as(channel, msgspec.json.encode(addressed), KEY)


def test_texts_for_people_are_cut_by_who_sends_and_by_who_receives() -> None:
    ack = Ack("c", "p", "d", "failed", 1.0, LONG)
    assert len(messages.encode(ack, KEY)) < 3000
    got = messages.decode(unbounded(ack), Ack, KEY)
    assert (got.state, len(got.reason), got.reason[-1]) == ("failed", SENTENCE, "\N{HORIZONTAL ELLIPSIS}")
    labels = {f"{LONG}{i}": LONG for i in range(3)} | {str(i): "b" for i in range(200)}
    status = Status("p", "d", 1, True, LONG, LONG, LONG, LONG, installed=LONG, labels=labels, reasons=MANY)
    heard = messages.decode(unbounded(status), Status, KEY)
    assert {len(text) for text in (heard.kind, heard.trainer, heard.agent, heard.runtime, heard.installed)} == {WORD}
    assert max(len(text) for label in heard.labels.items() for text in label) == WORD
    assert len(heard.labels) <= ENTRIES
    assert [len(reason) for reason in heard.reasons] == [SENTENCE] * 9 + [1] * (ENTRIES - 9)
    report = Reported(LONG, LONG, LONG, LONG, 1, 1, 1.0, MANY, LONG, LONG)
    for outcome in (report, Answered(LONG, Blob.of(b"x"))):
        result = messages.decode(unbounded(Result("c", "p", "d", 1.0, outcome)), Result, KEY)
        assert len(msgspec.json.encode(result)) < ENTRIES * WORD + 10 * WORD


def test_what_fits_is_left_as_it_is() -> None:
    status = Status("p", "d", 1, True, "phone", "litert", labels={"site": "lab"}, reasons=["not charging"])
    heard = messages.decode(messages.encode(status, KEY), Status, KEY)
    assert heard == msgspec.structs.replace(status, topic="umbel/1/p/d/status")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"epoch": 10**30}, {"examples": MOST_COUNT + 1}, {"examples": -1}),
        *({"skew": 1e308}, {"skew": -1e11}, {"rss_mb": 1e308}, {"rss_mb": -1.0}),
    ],
)
def test_a_status_of_numbers_that_nobody_can_keep_or_read_is_refused(wrong: dict[str, float]) -> None:
    status = msgspec.structs.replace(Status("p", "d", 1, True), **wrong)
    with pytest.raises(MessageError, match="does not parse"):
        messages.decode(unbounded(status), Status, KEY)


@pytest.mark.parametrize(
    "outcome",
    [
        Trained("a", Blob.of(b"x"), 1, {LONG: 1.0}),
        Trained("a", Blob.of(b"x"), 1, {"loss": [1.0] * (NUMBERS + 1)}),
        Trained("a", Blob.of(b"x"), 1, {str(i): 1.0 for i in range(METRICS + 1)}),
        Trained(LONG, Blob.of(b"x"), 1, {}),
        Exported(Blob("0" * 64, INLINE_MAX + 1, b"x" * (INLINE_MAX + 1)), 1),
    ],
)
def test_an_outcome_that_holds_more_than_it_can_need_is_refused(outcome: messages.Outcome) -> None:
    (kind,) = (kind for kind in KINDS if kind.outcome is type(outcome))
    with pytest.raises(MessageError, match="at most"):
        check_outcome(kind, outcome)


def test_labels_that_would_be_cut_are_refused_where_they_are_written() -> None:
    check_labels({"site": "lab"}, "labels")
    for labels in ({"site": "x" * (WORD + 1)}, {str(i): "" for i in range(ENTRIES + 1)}):
        with pytest.raises(MessageError, match="labels should be at most 64"):
            check_labels(labels, "labels")
