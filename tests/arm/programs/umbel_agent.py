"""`umbel-agent`, for a Python in which no distribution is installed."""

import sys

from umbel_edge.cli import main

sys.argv[0] = "umbel-agent"
main()
