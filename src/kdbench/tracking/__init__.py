"""Loggers of runs: metric files and Weights & Biases."""
