"""Deterministic simulation of the round engine: everything that goes wrong in one schedule comes from one seed."""
