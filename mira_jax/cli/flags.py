"""Logging of libraries while a command runs."""

from __future__ import annotations

from absl import flags, logging


def set_up_logging() -> None:
  """Lets orbax, TFDS and grain log warnings only."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
  logging.set_verbosity(logging.WARNING)
