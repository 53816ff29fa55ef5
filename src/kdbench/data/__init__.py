"""Data sets, from files to batches of views that are cut on the device."""
