#!/usr/bin/env bash
# safetensors writes a transposed NumPy array with its values in another order.
#
# Version:   safetensors 0.8.0 (safetensors.numpy), NumPy 2.4.6
# Behaviour: `save` takes the array's memory as it lies and the shape as it is seen. An array that is not C-contiguous, such as
#            a transpose, therefore reads back with the right shape and permuted values. There is no error and no warning.
# Expected:  the values that were saved, or a refusal.
# Output:    saved [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#            read  [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
# Way out:   numpy.ascontiguousarray before `save`.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 || exit 2
"$folder/venv/bin/python" - <<'EOF'
import sys

import numpy as np
from safetensors.numpy import load, save

kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T
read = load(save({"kernel": kernel}))["kernel"]
print("saved", kernel.tolist())
print("read ", read.tolist())
sys.exit(read.shape != kernel.shape or np.array_equal(read, kernel))
EOF
