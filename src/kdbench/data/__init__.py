"""Data sets in memory, their views, and batches cut on the device."""
