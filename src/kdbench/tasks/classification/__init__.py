"""Classification: batches that all methods share, losses on logits and features, top-1."""
