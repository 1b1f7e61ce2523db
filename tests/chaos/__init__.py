"""Faults at random upon the real thing: real processes, real ZeroMQ, a real kernel in a guest. `make chaos`."""
