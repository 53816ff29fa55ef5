"""The machine: its files, locks, devices, signals and terminal."""
