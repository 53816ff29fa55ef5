"""A run's identity, and the files that it leaves behind."""
