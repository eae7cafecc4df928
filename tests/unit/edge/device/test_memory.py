"""Which mappings an idle agent may give back."""

import pytest

from umbel_edge.device.memory import unchanged_code

SMAPS = """\
{0} r-xp 00002000 08:01 1234    /usr/lib/libexample.so
Size:                  8 kB
Anonymous:      {1} kB
ProtectionKey:         0
{2}
Size:                  8 kB
Anonymous:             0 kB
"""


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        (0, "7f0000004000-7f0000006000 r--p 00004000 08:01 1234    /usr/lib/libexample.so"),
        (0, "7f0000004000-7f0000006000 rw-p 00004000 08:01 1234    /usr/lib/libexample.so"),
        (0, "7f0000004000-7f0000006000 rwxp 00004000 08:01 1234    /usr/lib/libexample.so"),
        (0, "7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0    [vdso]"),
        (0, "7f0000004000-7f0000006000 r-xp 00000000 00:00 0"),
        (0, "7f0000004000-7f0000006000 rw-p 00000000 00:00 0    [heap]"),
        (4, "7f0000004000-7f0000006000 rw-p 00000000 00:00 0    [heap]"),
    ],
)
def test_only_code_that_is_as_in_its_file_is_given_back(changed: int, other: str) -> None:
    smaps = SMAPS.format("7f0000002000-7f0000004000", changed, other)
    expected = [] if changed else [(0x7F0000002000, 0x7F0000004000)]
    assert list(unchanged_code(smaps.splitlines())) == expected
