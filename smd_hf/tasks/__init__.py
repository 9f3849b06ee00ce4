"""The tasks of the Hub that a run can serve, one file each."""
