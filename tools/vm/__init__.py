"""A real kernel for tests and demos: one command, or a whole pytest, in a QEMU guest.

Development machines have neither ublk nor USB device controllers, so what needs them runs in a guest
with Debian's own kernel package; nothing is installed on the machine, and nothing a guest writes reaches
it except under a directory shared on purpose. `images` fetches and unpacks, `initrd` builds what boots,
`guest` runs one QEMU, `accel` decides on hardware virtualisation, `parallel` splits a pytest over guests.
The command line is in `__main__`. Nothing in here is imported by any role.
"""
