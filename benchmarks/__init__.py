"""Measurements: how fast, against what the machine can do."""
