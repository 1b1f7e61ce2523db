"""`replug doctor`: probe gathers facts about this machine, core makes findings of them, show prints them."""
