"""The simulator: the real roles of both sides in one thread, under one seed and a virtual clock.

Real are every core, every role's shell, the data planes, the lanes and their envelopes. Modelled is what they stand on:
ZeroMQ (model_bus), the ublk driver and the block layer (model_ublk), USB with FunctionFS and usbfs (model_link), files
(model_source), processes and their death (processes), forks and the spawner (model_spawner, supervision). `python -m
tests.sim` runs seeds, and `python -m tests.sim.explore` every kill point of a small workload.
"""
