"""A Hub on the loopback interface, spoken to over real HTTP by the real clients in separate processes."""
