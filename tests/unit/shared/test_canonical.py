"""What is signed: one form of bytes, for one topic and one purpose, and no byte of it can be another."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws

from umbel import messages, release, signing
from umbel.enrolment import CLOCK_TOLERANCE
from umbel.errors import MessageError, PlanError, SignatureError, UmbelError
from umbel.messages import MOST_SKEW, Ack, Blob, Cancel, Command, Evaluated, Report, Result, Status, Trained
from umbel.signing import PublicKey
from umbel.topics import Channel

KEY, OTHER = signing.generate_key(), signing.generate_key()
Message = Command | Ack | Result | Status

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
texts, times = st.text(max_size=40), st.floats(0, 4e9)
numbers = st.integers(0, 2**62)
finite = st.floats(allow_nan=False, allow_infinity=False)
keys = st.builds(PublicKey, st.just("EC"), st.just("P-256"), texts, texts)
metrics = st.dictionaries(texts, finite | st.lists(finite, max_size=3), max_size=3)
blobs = st.binary(max_size=40).map(Blob.of)
trained = st.builds(Trained, texts, blobs, st.integers(0, 2**31), metrics, finite)
evaluated = st.builds(Evaluated, texts, st.integers(0, 2**31), metrics, finite)
bodies = st.builds(Report) | st.builds(Cancel, texts)
ends: dict[str, Any] = {"sequence": numbers, "expires": times}
commands = st.builds(
    Command, texts, names, names, times, times, bodies, st.none() | keys, sequence=numbers, version=st.just(2)
)
acks = st.builds(Ack, texts, names, names, st.sampled_from(["accepted", "done"]), times, texts, **ends)
results = st.builds(Result, texts, names, names, times, trained | evaluated, **ends)
statuses = st.builds(
    Status,
    names,
    names,
    st.integers(0, 2**62),
    st.booleans(),
    texts,
    examples=st.integers(0, 2**31 - 1),
    rss_mb=st.floats(0, 1e9),
    labels=st.dictionaries(texts, texts, max_size=3),
    reasons=st.lists(texts, max_size=3),
    at=times,
    skew=st.floats(-MOST_SKEW, MOST_SKEW),
    agreement=st.none() | keys,
    **ends,
)
KINDS: dict[Channel, type[Message]] = {"command": Command, "ack": Ack, "result": Result, "status": Status}


def read(channel: Channel, token: bytes) -> Message:
    if channel == "command":
        return messages.decode_command(token, KEY)
    return messages.decode(token, KINDS[channel], KEY)  # type: ignore[type-var]


def channel_of(message: Message) -> Channel:
    return next(channel for channel, kind in KINDS.items() if isinstance(message, kind))


@given(commands | acks | results | statuses)
def test_who_decodes_and_encodes_a_message_has_the_same_bytes(message: Message) -> None:
    token = messages.encode(message, KEY)
    payload = signing.verify(token, KEY)
    again = read(channel_of(message), token)
    assert msgspec.json.encode(again) == payload
    assert signing.verify(messages.encode(again, KEY), KEY) == payload
    said = msgspec.json.decode(payload)
    assert said["topic"] == f"umbel/1/{message.population}/{message.device}/{channel_of(message)}"
    assert (said["population"], said["device"]) == (message.population, message.device)
    assert (said["sequence"], said["expires"]) == (message.sequence, message.expires)
    assert {"id", "command", "epoch"} & set(said)


@given(commands | acks | results | statuses, st.data())
def test_no_field_can_be_changed_on_the_way(message: Message, data: st.DataObject) -> None:
    """Neither in the signed payload, nor in the header that says what it was signed as."""
    header, payload, signature = messages.encode(message, KEY).split(b".")
    said = msgspec.json.decode(_decoded(payload))
    name = data.draw(st.sampled_from(sorted(said)))
    changed = msgspec.json.encode({**said, name: data.draw(st.just("x") | st.integers() | st.none())})
    if changed != _decoded(payload):
        with pytest.raises(SignatureError):
            read(channel_of(message), b".".join([header, _encoded(changed), signature]))
    titles = msgspec.json.decode(_decoded(header))
    retitled = msgspec.json.encode({**titles, "typ": "umbel-" + data.draw(st.sampled_from(sorted(KINDS)))})
    if retitled != _decoded(header):
        with pytest.raises(SignatureError):
            read(channel_of(message), b".".join([_encoded(retitled), payload, signature]))


@given(commands | acks | results | statuses, st.sampled_from(sorted(KINDS)))
def test_a_message_is_none_of_another_channel(message: Message, channel: Channel) -> None:
    token = messages.encode(message, KEY)
    if channel != channel_of(message):
        with pytest.raises(SignatureError, match="signed as"):
            read(channel, token)


@pytest.mark.parametrize("field", ["topic", "population", "device"])
@pytest.mark.parametrize("message", [Command("c", "p", "d", 1.0, 2.0, Report()), Ack("c", "p", "d", "done", 1.0)])
def test_a_message_that_is_signed_for_two_addresses_is_refused(message: Command | Ack, field: str) -> None:
    channel = channel_of(message)
    addressed = {**msgspec.to_builtins(message), "topic": f"umbel/1/p/d/{channel}"}
    assert read(channel, signing.sign_as(channel, msgspec.json.encode(addressed), KEY))
    for wrong in ("x", "", f"umbel/1/p/e/{channel}"):
        token = signing.sign_as(channel, msgspec.json.encode({**addressed, field: wrong}), KEY)
        with pytest.raises(MessageError, match="signed for"):
            read(channel, token)
    without = {name: value for name, value in addressed.items() if name != field}
    with pytest.raises(MessageError):
        read(channel, signing.sign_as(channel, msgspec.json.encode(without), KEY))


def test_what_is_signed_for_one_purpose_is_good_for_no_other() -> None:
    kinds = ["command", "ack", "result", "status", "plan", "release", "access"]
    tokens = {kind: signing.sign_as(kind, b"{}", KEY) for kind in kinds} | {"": signing.sign(b"{}", KEY)}
    for kind in kinds:
        for signed, token in tokens.items():
            if signed == kind:
                assert signing.verify_as(kind, token, KEY) == b"{}"
            else:
                with pytest.raises(SignatureError, match="signed as"):
                    signing.verify_as(kind, token, KEY)
        with pytest.raises(SignatureError):
            signing.verify_as(kind, tokens[kind], OTHER)
    odd = jws.serialize_compact({"alg": "ES256", "typ": "x" * 100}, b"{}", KEY).encode()
    with pytest.raises(SignatureError, match=r"signed as x{40}$"):
        signing.verify_as("ack", odd, KEY)
    with pytest.raises(PlanError, match="umbel-plan"):
        release.verify(tokens["plan"], KEY)


def test_answers_and_statuses_end_and_a_will_does_not() -> None:
    """A will is signed when its session begins; it is its epoch that ends it."""
    ack, online = Ack("c", "p", "d", "done", 0.0, expires=10.0), Status("p", "d", 1, True, expires=10.0)
    will = Status("p", "d", 1, False)
    for message in (ack, online, will):
        messages.check_current(message, 10.0 + CLOCK_TOLERANCE)
    messages.check_current(will, 1e12)
    for ended in (ack, online, Ack("c", "p", "d", "done", 1e9), Status("p", "d", 1, True, at=1e9)):
        with pytest.raises(UmbelError, match="expired"):
            messages.check_current(ended, 10.5 + CLOCK_TOLERANCE)


def _decoded(part: bytes) -> bytes:
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def _encoded(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part).rstrip(b"=")
