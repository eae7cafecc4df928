"""A fresh process imports only what it needs."""

import subprocess
import sys


def test_importing_umbel_imports_neither_keras_nor_flower() -> None:
    code = "import sys, umbel; print([m for m in ('keras', 'tensorflow', 'flwr', 'typer') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_device_that_gets_no_sealed_command_loads_nothing_for_it() -> None:
    code = "import sys, umbel_edge.agent; print('joserfc.jwe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
