"""The PC side: holds the bytes of the gadget's block devices. Roles: usb, source.<export>, session."""
