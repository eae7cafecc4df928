"""Enrolling at a server once, and connecting to the same server ever after."""

import logging
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from umbel import signing
from umbel.enrolment import (
    CLOCK,
    CONNECTION_PATH,
    ENROL_PATH,
    UNKNOWN,
    EnrolmentReply,
    EnrolmentRequest,
    Trust,
    sign_request,
    split_token,
)
from umbel.errors import NOT_DECODED, SignatureError, UmbelError
from umbel.messages import PROTOCOL
from umbel_edge.config import AgentConfig
from umbel_edge.connection.http import Refused, ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.device.state import AgentState

log = logging.getLogger("umbel.agent")

ATTEMPTS = 5
"""Attempts of `umbel-agent enrol` to reach the server; few, because a person waits."""


def connect(http: ServerHttp, config: AgentConfig, state: AgentState, participation: Participation) -> EnrolmentReply:
    """The broker's address, from the server that this device trusts; enrols the device first if it is not enrolled.

    Waits, and logs that once, while the server does not answer, the device is suspended, or its clock is wrong. Raises
    UmbelError when the server refuses the device, or is not the one that the device trusts.
    """
    _name_proxies(http)
    waited = 0
    while True:
        try:
            return _connect(http, config, state)
        except Refused as error:
            if error.code not in ("suspended", CLOCK):
                raise
            if waited == 0:
                log.warning("%s; waiting", error)
            participation.pause(waited)
            waited += 1


def _connect(http: ServerHttp, config: AgentConfig, state: AgentState) -> EnrolmentReply:
    pinned = _pinned(http, state)
    if pinned is None and not config.enrolment_token:
        raise UmbelError(
            f"{state.folder}: this device is not enrolled; 'umbel-agent enrol URL TOKEN' does that, "
            "with a token from 'umbel devices invite'"
        )
    if pinned is not None:
        http.use(pinned)
        try:
            reply = ask(http, state, pinned)
            _look_back(state, reply)
            return reply
        except Refused as error:
            if error.code != UNKNOWN:
                raise
            if not config.enrolment_token:
                raise UmbelError(
                    f"{error}; ask for a new invitation, and put its token into the configuration as enrolment_token"
                ) from error
    return enrol(http, state, config.enrolment_token, config.device, config.kind, config.population)


def enrol(
    http: ServerHttp,
    state: AgentState,
    token: str,
    device: str,
    kind: str,
    population: str = "",
    attempts: float = float("inf"),
) -> EnrolmentReply:
    """Enrol the device's key at the server, and trust the server with the token's fingerprint from then on.

    The invitation sets an empty `population` or `kind`. Raises UmbelError when the server refuses, has another fingerprint
    than the token, or does not answer in `attempts` attempts.
    """
    secret, fingerprint = split_token(token)
    trust = _pinned(http, state) or http.ask_trust(fingerprint, attempts)
    http.use(trust)
    request = EnrolmentRequest(device, kind, signing.public_key(state.key), secret, population)
    answer = http.until_answered("POST", ENROL_PATH, sign_request(request, state.key), signed=False, attempts=attempts)
    reply, trust = _checked(http, answer, state, trust)
    _begin_memory(state, reply)
    state.pin(trust)
    return reply


def ask(http: ServerHttp, state: AgentState, trust: Trust) -> EnrolmentReply:
    """The server's reply to an enrolled device, once it answers; raises Refused, and UmbelError when it is another server."""
    return _checked(http, http.until_answered("GET", CONNECTION_PATH, is_answer=_is_json), state, trust)[0]


def _is_json(answer: bytes) -> bool:
    try:
        msgspec.json.decode(answer, type=dict)
    except NOT_DECODED:
        return False
    return True


def _name_proxies(http: ServerHttp) -> None:
    """Log that the proxies in the environment are not used, as the agent connects by itself."""
    scheme = "https" if http.secure else "http"
    if (proxy := getproxies().get(scheme)) and not proxy_bypass(urlsplit(http.url).hostname or ""):
        log.warning(
            "%s_proxy is set (%s) and not used: the agent connects to %s and to the broker directly",
            scheme,
            proxy,
            http.url,
        )


def _look_back(state: AgentState, reply: EnrolmentReply) -> None:
    """Detect that the device forgot answers which the server has, as after a restored backup, and begin its memory anew."""
    if state.epoch >= reply.epoch and state.inbox.last_answered >= reply.answered:
        return
    log.warning(
        "the server knows of later answers than this device remembers: the state folder was restored from a backup, or its "
        "last changes were lost; commands from before now are not executed"
    )
    _begin_memory(state, reply)


def _begin_memory(state: AgentState, reply: EnrolmentReply) -> None:
    with state.change():
        state.inbox.begin_memory(reply.sequence)
        state.raise_epoch(reply.epoch)
        state.inbox.note_answered(reply.answered)


def _pinned(http: ServerHttp, state: AgentState) -> Trust | None:
    """The trust that this device has, unless it is from before the server used TLS."""
    pinned = state.pinned()
    return None if pinned is None or (http.secure and not pinned.ca) else pinned


def catch_up(http: ServerHttp, state: AgentState, trust: Trust) -> Trust:
    """`trust`, extended by the server's newer signing keys, each signed by the one before; saved when there are any.

    Raises UmbelError when the server cannot prove its newer keys.
    """
    try:
        extended = trust.extended(http.told_trust())
    except SignatureError as error:
        raise UmbelError(f"{http.url} cannot prove its signing keys ({error}); is it another server?") from error
    if extended != trust:
        log.info("the server has a new signing key, %s", signing.fingerprint(extended.lineage().newest)[:8])
        if state.pinned() is not None:
            state.pin(extended)
    return extended


class _Protocol(msgspec.Struct):
    protocol: int = 1


def _checked(http: ServerHttp, answer: bytes, state: AgentState, trust: Trust) -> tuple[EnrolmentReply, Trust]:
    """The reply in `answer`, checked to be of the trusted server, and the trust with that server's newest key."""
    try:
        protocol = msgspec.json.decode(answer, type=_Protocol).protocol
        if protocol != PROTOCOL:
            raise UmbelError(f"{http.url} speaks protocol {protocol}, this agent {PROTOCOL}: upgrade the older side")
        reply = msgspec.json.decode(answer, type=EnrolmentReply)
    except NOT_DECODED as error:
        raise UmbelError(f"{http.url} does not answer like an Umbel server ({error}); correct its URL") from error
    newest = signing.fingerprint(signing.import_public(reply.server_key))
    if newest not in trust.lineage().all:
        trust = catch_up(http, state, trust)
    if newest not in trust.lineage().all:
        http.check(newest, signing.fingerprint(trust.lineage().newest))
    return reply, trust
