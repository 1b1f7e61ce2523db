"""Generated faults in the cores: does a test notice each of them? `make mutants`; see docs/explanation/proof.md."""
