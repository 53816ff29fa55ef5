"""Configuration that other packages bring to kdbench (`kdbench.schema.plugins`)."""
