"""The README's first example, run as it stands: three agents learn y = 2x - 1."""

import os
import re
import subprocess
import sys
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
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = re.search(r"answers 10 with ([-\d.]+)", done.stdout)
    assert answer is not None, done.stdout
    assert abs(float(answer[1]) - 19) < 0.05
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    psutil.wait_procs(left, timeout=10)
    assert not any(p.is_running() for p in left)
