import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import topics
from umbel.errors import MessageError

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)


@given(names, names, st.sampled_from(["command", "ack", "status", "result"]))
def test_parse_reads_what_topic_writes(population: str, device: str, channel: topics.Channel) -> None:
    assert topics.parse(topics.topic(population, device, channel)) == (population, device, channel)


@given(st.text(max_size=80))
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(MessageError):
        topics.parse(text)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "é", ".hidden", "x" * 65, "a\n"])
def test_names_that_would_break_a_topic_or_a_path_are_refused(name: str) -> None:
    with pytest.raises(MessageError, match="a device id should be"):
        topics.check_name(name, "a device id")
