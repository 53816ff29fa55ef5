"""The recipes, one a file; a new one needs its file here, a YAML in conf/method and a test."""
