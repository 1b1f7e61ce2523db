"""The gadget's USB: configfs tree, FunctionFS, endpoint I/O by libaio, and the role that owns them."""
