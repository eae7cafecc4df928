"""A process that gives memory back."""

import subprocess
import sys

import pytest

CODE = """
from umbel_edge.device.memory import release_memory
from umbel_edge.device.sensors import resident_mb
from umbel import signing
import numpy, sqlite3, ssl, threading, urllib3
key = signing.generate_key()
freed = [bytes(300) for _ in range(100_000)]
del freed[::2]
before = resident_mb()
for _ in range(3):
    release_memory()
print(before - resident_mb())
working = threading.Thread(target=lambda: [signing.sign(b"x", key) for _ in range(300)])
working.start()
for _ in range(20):
    release_memory()
working.join()
assert signing.verify(signing.sign(b"payload", key), key) == b"payload"
assert (numpy.ones((64, 64)) @ numpy.ones((64, 64)))[0, 0] == 64
assert freed[7] == bytes(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux")
def test_a_process_goes_on_after_it_gave_code_back_also_while_that_code_runs() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 5
