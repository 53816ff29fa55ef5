"""Checks of configurations: types, plugins of others, and secrets kept out."""
