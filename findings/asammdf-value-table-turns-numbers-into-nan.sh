#!/usr/bin/env bash
# One value without a name turns every named value of a CAN signal into NaN when asammdf decodes a bus log.
#
# Version:   asammdf 8.8.0, with canmatrix 1.3.3 for the DBC file
# Behaviour: the DBC names the values 0 and 1 of the signal Gear, and not 2, which is allowed. As soon as the log holds a 2,
#            `extract_bus_logging` gives numbers for the values that have no name and NaN for those that have one. Without the 2
#            it gives the names. `raw=True` always gives the numbers.
# Expected:  the names where there are some; and nothing that depends on which other values the log happens to hold.
# Output:    log of 0 1 0 1: ['neutral', 'first', 'neutral', 'first']
#            log of 0 1 2 1: [nan, nan, 2.0, nan], raw [0, 1, 2, 1]
# Way out:   read with raw=True and name the values yourself.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asammdf==8.8.0 canmatrix==1.3.3 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" -W ignore - "$folder" <<'EOF'
import sys
from pathlib import Path

import numpy as np
from asammdf import MDF, Signal, Source

DBC = """\
VERSION ""
BU_: Gearbox
BO_ 256 Transmission: 8 Gearbox
 SG_ Gear : 0|8@1+ (1,0) [0|255] "" Gearbox
VAL_ 256 Gear 0 "neutral" 1 "first" ;
"""
FRAME = [("BusChannel", "u1"), ("ID", "<u4"), ("IDE", "u1"), ("DLC", "u1"), ("DataLength", "u1"), ("DataBytes", "u1", (8,))]
folder = Path(sys.argv[1])
(folder / "bus.dbc").write_text(DBC)


def decoded(gears):
    """The signal Gear of a bus log, as it comes and raw."""
    frames = np.zeros(len(gears), [(f"CAN_DataFrame.{name}", *kind) for name, *kind in FRAME])
    for name, value in {"BusChannel": 1, "ID": 256, "DLC": 8, "DataLength": 8}.items():
        frames[f"CAN_DataFrame.{name}"] = value
    frames["CAN_DataFrame.DataBytes"][:, 0] = gears
    source = Source("CAN", "CAN", "", Source.SOURCE_BUS, Source.BUS_TYPE_CAN)
    path = folder / f"{len(list(folder.iterdir()))}.mf4"
    with MDF(version="4.10") as log:
        log.append([Signal(frames, np.arange(len(gears)) / 10, name="CAN_DataFrame", source=source)], acq_source=source)
        log.save(path)
    with MDF(path) as log, log.extract_bus_logging({"CAN": [(folder / "bus.dbc", 1)]}) as found:
        gear = found.get("Gear").samples.tolist()
        named = [value.decode() if isinstance(value, bytes) else value for value in gear]
        return named, found.get("Gear", raw=True).samples.tolist()


all_named, _ = decoded([0, 1, 0, 1])
one_unnamed, raw = decoded([0, 1, 2, 1])
print("log of 0 1 0 1:", all_named)
print(f"log of 0 1 2 1: {one_unnamed}, raw {raw}")
lost = [value for value in one_unnamed if isinstance(value, float) and np.isnan(value)]
sys.exit(not (all_named == ["neutral", "first", "neutral", "first"] and len(lost) == 3 and raw == [0, 1, 2, 1]))
EOF
