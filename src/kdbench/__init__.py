"""kdbench: the open benchmark of knowledge distillation for image classification."""
