"""What a configuration may say: types, plugins of others, and secrets kept out."""
