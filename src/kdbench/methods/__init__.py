"""The recipes of knowledge distillation, one a file."""
