"""A run: its images, ledger, state, identity, lock, limits and costs, and how it is resumed."""
