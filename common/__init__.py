"""What both sides and every process agree on: wire format, limits, units, errors, log format. Imports none of ours."""
