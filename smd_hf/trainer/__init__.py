"""The trainer, and the parts that it is made of; the loop itself is in `trainer.py`."""
