"""What attention's implementations do on this machine: checks and times."""
