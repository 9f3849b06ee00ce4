"""Several objectives at once: their values, the front, and evolution towards it."""
