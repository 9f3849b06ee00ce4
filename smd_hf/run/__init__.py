"""The ledger, and what it takes for a run to go on: its state, what it is, its lock, and where it resumes."""
