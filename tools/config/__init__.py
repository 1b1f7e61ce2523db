"""Configuration files: TOML whose keys are the options of the commands, so that there is one list of both."""
