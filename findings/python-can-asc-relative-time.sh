#!/usr/bin/env bash
# python-can reads the relative timestamps of a Vector ASC log as if they counted from the start of the log.
#
# Version:   python-can 4.6.1
# Behaviour: a log whose header says "timestamps relative" gives each frame's distance from the frame before. `ASCReader` parses
#            that word and does not use it: three frames 0.5 s apart all come out at 0.5 s.
# Expected:  0.5, 1.0, 1.5.
# Output:    header says relative: [0.5, 0.5, 0.5]
#            header says absolute: [0.5, 1.0, 1.5]
# Way out:   sum the distances when the header says so.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check python-can==4.6.1 || exit 2
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
from pathlib import Path

from can import ASCReader

LOG = """\
date Thu Jan 01 12:00:00.000 2026
base hex  timestamps {meaning}
no internal events logged
Begin Triggerblock Thu Jan 01 12:00:00.000 2026
   0.000000 Start of measurement
{frames}
End TriggerBlock
"""


def times(meaning, stamps):
    path = Path(sys.argv[1], f"{meaning}.asc")
    frames = "\n".join(f"   {stamp:.6f} 1  1A0             Rx   d 2 00 {i:02X}" for i, stamp in enumerate(stamps))
    path.write_text(LOG.format(meaning=meaning, frames=frames))
    with ASCReader(path) as log:
        return [frame.timestamp for frame in log]


relative, absolute = times("relative", [0.5, 0.5, 0.5]), times("absolute", [0.5, 1.0, 1.5])
print("header says relative:", relative)
print("header says absolute:", absolute)
sys.exit(not (relative == [0.5, 0.5, 0.5] and absolute == [0.5, 1.0, 1.5]))
EOF
