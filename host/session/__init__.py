"""The host's session: finds the gadget, shakes hands, keeps listening. Role entry: host.session.role."""
