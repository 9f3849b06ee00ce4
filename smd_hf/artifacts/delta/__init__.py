"""A child as a small artifact of its own: what it changes, against a pinned base."""
