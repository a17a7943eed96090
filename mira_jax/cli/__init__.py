"""The commands of `mira`: arguments, calls, printing."""
