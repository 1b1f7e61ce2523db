"""Role `usb` of the host: the claimed interface, the in-flight table, the payload arenas."""
