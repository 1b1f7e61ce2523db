"""The gadget's session: its id, the state file, which exports should exist. Role entry: gadget.session.role."""
