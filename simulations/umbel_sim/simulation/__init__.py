"""Runs of virtual devices: the server's own rounds and the agent's own trainer, in virtual time."""
