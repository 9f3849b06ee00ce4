"""Models: loading and saving them, new heads, quantised weights."""
