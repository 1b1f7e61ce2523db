"""Supervision of one side: the spawner that forks roles, its twin, the watchdog that decides, their plan.

`core` is pure and holds every decision; `watchdog` and `spawner` are its shells. Called by tools.cli.
"""
