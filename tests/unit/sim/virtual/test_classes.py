"""Device classes and how a mix of them is written."""

from collections import Counter

import pytest

from umbel.errors import UmbelError
from umbel_sim.virtual.classes import CLASSES, DeviceClass, mix


def test_a_class_stands_for_itself_with_share_one() -> None:
    assert mix([]) == mix(["phone-high"])
    assert mix(["vehicle"]).classes == (CLASSES["vehicle"],)
    assert mix(["vehicle"]).shares == (1.0,)


def test_a_class_takes_changes_and_a_share() -> None:
    found = mix(["phone-low:drop_out=0.1=0.7", "vehicle:gflops=30,upload=2e6=0.3", "gateway=2", "even:spread=1"])
    assert found.shares == (0.7, 0.3, 2.0, 1.0)
    assert found.classes[0].drop_out == 0.1
    assert (found.classes[1].gflops, found.classes[1].upload) == (30.0, 2e6)
    assert found.classes[1].download == CLASSES["vehicle"].download
    assert found.classes[3].spread == 1.0


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["phone"], "no device class 'phone'; there are phone-low"),
        ([""], "no device class ''"),
        (["=0.5"], "no device class ''"),
        (["phone-low=many"], "expected CLASS[:FIELD=NUMBER,...][=SHARE] such as"),
        (["phone-low:drop_out=0.1="], "expected CLASS"),
        (["phone-low:drop_out=often"], "expected CLASS"),
        (["phone-low:colour=1"], "a device class has no 'colour'; it has download"),
        (["phone-low:name=1"], "a device class has no 'name'"),
        (["phone-low:0.5"], "a device class has no '0.5'"),
        (["phone-low:drop_out=2"], "drop_out should be at most 1"),
        (["phone-low:spread=4"], "spread at most 3"),
        (["phone-low:upload=0"], "upload should be positive"),
        (["phone-low:upload=nan"], "upload should be at least 0, got nan"),
        (["phone-low:gflops=inf"], "gflops should be at least 0, got inf"),
        (["phone-low:latency=-1"], "latency should be at least 0, got -1"),
        (["phone-low=0"], "shares of device classes should be positive"),
        (["phone-low=nan"], "shares of device classes should be positive"),
        (["phone-low=inf", "vehicle"], "shares of device classes should be positive"),
        (["phone-low=2", "vehicle=-1"], "shares of device classes should be positive"),
    ],
)
def test_what_is_no_mix_is_refused_in_a_sentence(texts: list[str], sentence: str) -> None:
    with pytest.raises(UmbelError) as caught:
        mix(texts)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_devices_are_of_classes_by_their_shares_and_always_the_same() -> None:
    made = mix(["phone-low=3", "vehicle=1"])
    counts = Counter(made.class_of(7, device).name for device in range(4000))
    assert abs(counts["phone-low"] - 3000) < 120  # 4 sigma
    assert [made.class_of(7, device) for device in range(50)] == [made.class_of(7, device) for device in range(50)]
    assert [made.class_of(7, device) for device in range(50)] != [made.class_of(8, device) for device in range(50)]


def test_devices_differ_in_speed_by_the_spread_of_their_class() -> None:
    speeds = [mix(["phone-high"]).speed_of(0, device) for device in range(2000)]
    assert 0.97 < sorted(speeds)[1000] < 1.03
    assert 1.8 < sorted(speeds)[1954] < 2.2  # two sigma of 0.3 is a factor of 1.82, 2 % are above
    assert {mix(["even"]).speed_of(0, device) for device in range(100)} == {1.0}


def test_a_step_takes_its_arithmetic_or_what_was_measured() -> None:
    assert DeviceClass("own", gflops=2.0).step_seconds(6e7) == pytest.approx(0.03)
    assert DeviceClass("own", seconds_per_step=0.5).step_seconds(6e7) == 0.5
