"""The agent's configuration file: the example is valid, and an invalid file is refused with advice."""

from pathlib import Path

import pytest

from umbel.conditions import Rules
from umbel.errors import UmbelError
from umbel_edge.config import EXAMPLE, load_config

TOKEN = "secret." + "A" * 43


def written(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text.replace("SECRET.FINGERPRINT", TOKEN))
    return path


def test_the_example_is_a_right_configuration_that_asks_for_nothing(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, EXAMPLE))
    assert config.conditions == Rules()
    assert (config.progress_seconds, config.readings) == (20.0, None)


def test_every_key_that_the_example_comments_out_is_right_too(tmp_path: Path) -> None:
    lines = []
    for line in EXAMPLE.splitlines():
        key = line.removeprefix("# ")
        lines.append(key if line.startswith("# ") and "=" in key and not key.startswith(("task", "pin_env")) else line)
    text = "\n".join(lines).replace("# [mqtt]", "[mqtt]").replace('store = "file"', 'store = "pkcs11"')
    config = load_config(written(tmp_path, text))
    assert config.conditions.hours == "22-6"
    assert (config.conditions.max_load, config.conditions.max_temperature) == (0.5, 45)
    assert config.readings == tmp_path / "readings.json"
    assert (config.key.token, config.key.name, config.key.pin_file) == ("umbel", "umbel", tmp_path / "pin")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("min_battery = 0.0", "min_battery = 30", "share between 0 and 1"),
        ("min_examples = 0", 'hours = "night"', "windows of whole hours"),
        ("min_examples = 0", "moon = 1", "unknown field `moon`"),
        ('unknown = "allow"', 'unknown = "maybe"', "Invalid enum value"),
        ("progress_seconds = 20", "progress_seconds = -1", "0 or more seconds"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    with pytest.raises(UmbelError, match=sentence):
        load_config(written(tmp_path, EXAMPLE.replace(old, new)))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ('token = "umbel"', 'are only for store = "pkcs11"'),
        ('store = "pkcs11"', "needs module"),
        ('store = "pkcs11"\nmodule = "x.so"', "needs module"),
        ('store = "pkcs11"\nmodule = "x.so"\ntoken = "t"', "either pin_file or pin_env"),
        ('store = "pkcs11"\nmodule = "x.so"\ntoken = "t"\npin_env = "A"\npin_file = "b"', "either pin_file or pin_env"),
        ('pin = "1234"', "unknown field `pin`"),
        ('store = "cloud"', "Invalid enum value"),
    ],
)
def test_a_key_store_that_makes_no_sense_is_refused(tmp_path: Path, key: str, sentence: str) -> None:
    with pytest.raises(UmbelError, match=sentence):
        load_config(written(tmp_path, EXAMPLE.replace('store = "file"', key)))
