"""The training engine: cohorts of runs from their first step to their records."""
