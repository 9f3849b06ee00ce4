"""Gradient-free fine-tuning of pretrained image classifiers by Sparse Mutation Decompositions."""

__version__ = "0.1.0.dev0"
