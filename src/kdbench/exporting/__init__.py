"""Trained students in the forms that other programs take."""
