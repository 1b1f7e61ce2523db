"""Both sides as real processes, unprivileged: only the two kernel shells are replaced, by sockets to a model process.

Real: roles, lanes, arenas, fd store, spawner, twin, watchdog, kill -9, SIGSTOP, files. Modelled, in one process that is
never struck (tests.native.machine): the cable with FunctionFS and usbfs at its ends, and the ublk driver with the block
layer. They are the simulator's models (tests/sim/model_link.py, model_ublk.py) under the real clock. A plan names the
modules gadget_usb, gadget_queue, ... of this package as entries, in the place of the product's own.
"""
