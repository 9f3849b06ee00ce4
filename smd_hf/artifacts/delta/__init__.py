"""Sparse deltas: a child stored as its changes of a pinned base."""
