"""What is particular to a task."""
