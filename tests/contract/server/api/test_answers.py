"""The JSON of every answer is what it was: answers.json holds what the API said before its answers had types."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.contract.server.api.every_answer import every_answer
from umbel.plan import Plan


def test_every_answer_has_the_keys_and_values_that_it_had(plan_of: Callable[[str], Plan], tmp_path: Path) -> None:
    recorded = json.loads(Path(__file__).with_name("answers.json").read_text())
    found = every_answer(tmp_path, plan_of("line"))
    assert found.keys() == recorded.keys()
    for what, answer in found.items():
        assert answer == recorded[what], what
