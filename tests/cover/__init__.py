"""Which statements were run, killed processes included. `make coverage`; see docs/explanation/proof.md."""
