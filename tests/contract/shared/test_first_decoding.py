"""Several threads may be the first to decode a message: that must not depend on which comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bare_plan import bare_plan
from tests.sampling import sample

OPENS, DECODES = "Plan.open(Path(sys.argv[1]))", "messages.decode(token, Result, key)"
RACE = """
import sys, threading
from pathlib import Path
from umbel import messages, signing
from umbel.messages import Blob, Result, Trained
from umbel.plan import Plan
key = signing.generate_key()
token = messages.encode(Result("c", "p", "d", 0.0, Trained("a", Blob("0", 0), 1, {{"loss": 1.0}})), key)
start = threading.Barrier(16)
sys.setswitchinterval(1e-6)

def first():
    start.wait()
    {work}

threads = [threading.Thread(target=first) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("work", sample([OPENS, DECODES], DECODES))
def test_sixteen_threads_decode_for_the_first_time_at_once(work: str, tmp_path: Path) -> None:
    plan = bare_plan(tmp_path / "bare.plan")
    for _ in range(8):  # without decoders made beforehand, about one process in three crashed
        ended = subprocess.run(
            [sys.executable, "-c", RACE.format(work=work), str(plan.path)], check=False, capture_output=True, text=True
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
