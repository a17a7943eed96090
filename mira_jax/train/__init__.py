"""Training: from a configuration to weights in a file."""
