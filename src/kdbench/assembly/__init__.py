"""From a checked configuration to data sets, networks and methods."""
