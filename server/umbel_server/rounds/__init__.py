"""Rounds that survive: a policy, a sans-io engine that decides, and what drives it on a fleet or on any Flower grid."""
