"""Every architecture of transformers and timm through a whole run. Slow: `pytest -m slow tests/architectures`."""
