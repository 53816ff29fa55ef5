"""Architectures, one family a file, each returning logits and named features."""
