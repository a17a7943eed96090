"""Sub-commands of `mira`: arguments, calls, printing."""
