"""`umbel demo`: the whole product on one machine, with real processes and real data."""
