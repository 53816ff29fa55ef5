"""Where a run reports to: metric files and Weights & Biases."""
