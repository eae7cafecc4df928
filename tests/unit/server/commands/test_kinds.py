"""The table of command kinds is whole: a kind that lacks a part, or has one too many, is found here."""

from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from umbel.errors import UmbelError
from umbel.messages import OUTCOMES, Blob, Body, Outcome
from umbel_server.commands.kinds import KINDS, SENDABLE, CommandKind, named

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def test_every_body_has_one_row_and_a_word_about_its_outcome() -> None:
    bodies = list(get_args(Body))
    assert sorted(kind.body.__name__ for kind in KINDS) == sorted(body.__name__ for body in bodies)
    assert set(OUTCOMES) == set(bodies)


def test_every_outcome_answers_a_kind() -> None:
    assert {outcome for outcome in OUTCOMES.values() if outcome is not None} == set(get_args(Outcome))


def test_names_are_unique_and_find_their_rows() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert [named(kind.name) for kind in KINDS] == list(KINDS)
    with pytest.raises(UmbelError, match="commands of kind 'dance' are unknown"):
        named("dance")


@every_kind
def test_an_outcome_with_a_blob_has_an_upload_and_no_other(kind: CommandKind[Any]) -> None:
    blobs = [field.name for field in msgspec.structs.fields(kind.outcome) if field.type is Blob] if kind.outcome else []
    assert len(blobs) == (kind.upload is not None)


@every_kind
def test_a_request_makes_the_body_of_its_row(kind: CommandKind[Any]) -> None:
    if kind.request is None:
        assert kind.request_fields == ()
        return
    assert kind.name in SENDABLE
    assert get_type_hints(kind.request.body)["return"] is kind.body
    kind.request()  # every field has a default: the API's one struct has the fields of all kinds


def test_a_field_of_several_kinds_has_one_type_and_one_default() -> None:
    seen: dict[str, tuple[Any, Any]] = {}
    for kind in KINDS:
        for field in kind.request_fields:
            assert get_origin(field.type) is Annotated
            bare = get_args(field.type)[0], field.default
            assert seen.setdefault(field.name, bare) == bare
