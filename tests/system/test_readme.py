"""The README's first example, run as it stands: three agents learn y = 2x - 1."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from umbel_sim.demo.processes import free_port

ROOT = Path(__file__).parent.parent.parent


def test_the_first_example_of_the_readme_answers_19(tmp_path: Path) -> None:
    block = re.search(r"```bash\n(umbel init .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    port = free_port()
    script = block[1].replace("umbel init ", f"umbel init --port {port} --mqtt-port {free_port()} ", 1)
    script = script.replace("127.0.0.1:8470", f"127.0.0.1:{port}")
    (tmp_path / "simulations").symlink_to(ROOT / "simulations")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # To a file: what the script leaves running would hold a pipe open.
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "COLUMNS": "120"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout=150)
        text = (tmp_path / "output").read_text()
        assert code == 0, text
        answer = re.search(r"answers 10 with ([-\d.]+)", text)
        assert answer is not None, text
        assert abs(float(answer[1]) - 19) < 0.05
        _, alive = psutil.wait_procs(of_session(process.pid), timeout=10)
        assert alive == []
    finally:
        for left in of_session(process.pid):
            left.kill()
        process.wait()


def of_session(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(OSError):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found
