"""`replug capture`: what the host's kernel sees on a USB bus (usbmon), written as a pcap file for Wireshark.

pcap.py is the file's format, usbmon.py the kernel's interface, record.py the command. What the bytes mean is told by
packaging/wireshark/replug.lua.
"""
