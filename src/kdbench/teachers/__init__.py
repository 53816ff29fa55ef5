"""Frozen teachers: found, verified, and asked for their outputs."""
