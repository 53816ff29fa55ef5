"""Data sets that are read from disk while they are trained on."""
