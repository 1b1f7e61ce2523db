"""Where an export's bytes lie. Role entry: host.source.role; one module for each kind of source."""
