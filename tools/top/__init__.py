"""`replug top`: core and events are pure (documents in, views and lines out), screen draws, app is the loop."""
