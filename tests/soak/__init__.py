"""Faults for hours, with curves of memory and descriptors: `make soak`."""
