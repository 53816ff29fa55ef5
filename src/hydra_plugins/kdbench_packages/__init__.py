"""Configuration that other packages bring to kdbench (`kdbench.packages`)."""
