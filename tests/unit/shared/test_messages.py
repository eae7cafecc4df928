import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import messages, signing
from umbel.errors import MessageError, SignatureError
from umbel.messages import INLINE_MAX, Ack, Blob, Cancel, Command, Infer, Report, Standing, Status, UnknownKind
from umbel.metrics import not_finite, sums_of

KEY, OTHER = signing.generate_key(), signing.generate_key()


def command(body: messages.Body) -> Command:
    return Command("c1", "home", "phone", 1.0, 2.0, body, topic="umbel/1/home/phone/command", sequence=7)


@pytest.mark.parametrize("body", [Report(), Cancel("a1"), Infer(Blob.of(b"tensors")), Standing("revoked", "sold")])
def test_a_command_arrives_as_it_was_sent(body: messages.Body) -> None:
    assert messages.decode_command(messages.encode(command(body), KEY), KEY) == command(body)


def test_another_key_no_signature_and_a_changed_byte_are_refused() -> None:
    token = messages.encode(command(Report()), KEY)
    header, payload, signature = token.split(b".")
    unsigned = b"eyJhbGciOiJub25lIn0." + payload + b"."
    changed = b".".join([header, payload[:-2] + b"AA", signature])
    for wrong in (messages.encode(command(Report()), OTHER), unsigned, changed, payload, b"", b"..", b"\xff\x00"):
        with pytest.raises(SignatureError):
            messages.decode_command(wrong, KEY)


@pytest.mark.parametrize("kind", [messages.Trained, messages.Evaluated])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_metrics_that_are_not_finite_leave_a_result_readable(
    kind: type[messages.Trained | messages.Evaluated], broken: float
) -> None:
    metrics = {"loss": 1.0, "mse": broken, "auc": [1.0, broken]}
    update = (Blob.of(b"update"),) if kind is messages.Trained else ()
    result = messages.Result("c1", "home", "phone", 1.0, kind("a1", *update, 4, metrics), 2.0)
    outcome = messages.decode(messages.encode(result, KEY), messages.Result, KEY).outcome
    assert isinstance(outcome, kind)
    assert outcome.metrics == {"loss": 1.0, "mse": None, "auc": [1.0, None]}
    sums = sums_of(outcome.metrics)
    assert not_finite(sums) == {"mse", "auc"}
    assert sums["loss"] == 1.0


def test_an_unknown_kind_can_still_be_answered() -> None:
    raw = {
        "id": "c9",
        "population": "p",
        "device": "d",
        "issued": 1,
        "expires": 2,
        "version": 2,
        "topic": "umbel/1/p/d/command",
        "body": {"type": "dance"},
    }
    with pytest.raises(UnknownKind, match="dance") as refusal:
        messages.decode_command(signing.sign_as("command", msgspec.json.encode(raw), KEY), KEY)
    assert refusal.value.head.id == "c9"


@pytest.mark.parametrize("version", [1, 3])
def test_another_protocol_says_who_should_upgrade(version: int) -> None:
    token = signing.sign(msgspec.json.encode({"version": version, "new": "things"}), KEY)
    with pytest.raises(MessageError, match=rf"protocol {version}.*upgrade"):
        messages.decode(token, Ack, KEY)


def test_every_status_and_acknowledgement_names_its_version() -> None:
    for message in (Ack("c", "p", "d", "done", 1.0), Status("p", "d", 1, True)):
        payload = signing.verify(messages.encode(message, KEY), KEY)
        assert msgspec.json.decode(payload)["version"] == 2


@given(st.binary(max_size=300))
def test_no_signed_bytes_crash_the_parsers(payload: bytes) -> None:
    for kind, channel in ((Ack, "ack"), (Status, "status")):
        with pytest.raises(MessageError):
            messages.decode(signing.sign_as(channel, payload, KEY), kind, KEY)
    with pytest.raises(MessageError):
        messages.decode_command(signing.sign_as("command", payload, KEY), KEY)


@given(st.binary(max_size=300))
def test_no_unsigned_bytes_crash_the_parsers(token: bytes) -> None:
    with pytest.raises(SignatureError):
        messages.decode_command(token, KEY)
    assert isinstance(messages.claimed_id(token), str)


def test_small_blobs_travel_along_and_are_checked() -> None:
    small, large = Blob.of(b"x" * INLINE_MAX), Blob.of(b"x" * (INLINE_MAX + 1))
    assert small.content() == b"x" * INLINE_MAX
    assert large.content() is None
    forged = msgspec.structs.replace(small, data=b"y" * INLINE_MAX)
    with pytest.raises(MessageError, match="digest"):
        forged.content()
