"""The classifier head, fitted exactly: its logits are linear in its weights, so it needs features and no children."""
