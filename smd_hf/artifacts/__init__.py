"""What a run leaves: files that it writes, and what they load as."""
