#!/usr/bin/env bash
# dp-accounting counts a composed event once if its noise multiplier is the integer 1 and not the float 1.0.
#
# Version:   dp-accounting 0.6.0
# Behaviour: two Gaussian mechanisms inside one Poisson-sampled round, a thousand rounds. With `GaussianDpEvent(1.0)` the RDP
#            accountant composes them; with `GaussianDpEvent(1)`, or with a NumPy scalar, it counts one of them. The epsilon is less
#            than half of the right one, and nothing warns. Configuration files give integers ("noise = 1" in TOML).
# Expected:  the same epsilon.
# Output:    noise 1.0: epsilon 5.261
#            noise 1  : epsilon 2.101
#            one mechanism, noise 1.0: epsilon 2.101
# Way out:   float() every noise multiplier.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check dp-accounting==0.6.0 || exit 2
"$folder/venv/bin/python" - <<'EOF'
import sys

from dp_accounting import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant


def epsilon(*noises):
    """At delta 1e-5, for 1,000 rounds that each take one device in a hundred."""
    inside = ComposedDpEvent([GaussianDpEvent(noise) for noise in noises])
    return RdpAccountant().compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.01, inside), 1000)).get_epsilon(1e-5)


floats, integers, one = epsilon(1.0, 1.0), epsilon(1, 1), epsilon(1.0)
print(f"noise 1.0: epsilon {floats:.3f}")
print(f"noise 1  : epsilon {integers:.3f}")
print(f"one mechanism, noise 1.0: epsilon {one:.3f}")
sys.exit(not (abs(integers - one) < 1e-6 and floats > 2 * integers))
EOF
