"""What trained students have learned, as numbers and figures."""
