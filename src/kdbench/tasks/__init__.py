"""The parts that are particular to a task."""
