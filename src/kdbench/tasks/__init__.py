"""What differs between tasks: batches, losses, scores and results."""
