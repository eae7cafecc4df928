"""Devices that exist in virtual time: how fast they are, and when they can be had."""
