"""Data: from a name, a folder or rows to images and labels that fit the model."""
