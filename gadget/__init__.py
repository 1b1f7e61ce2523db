"""The device side: a USB gadget whose block devices' bytes lie on the host. Roles: usb, queue.<export>, session."""
