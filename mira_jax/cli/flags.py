"""Logging of libraries while a command runs."""

from __future__ import annotations

import contextlib

from absl import flags, logging

from mira_jax.train import checkpoint

_process = contextlib.ExitStack()  # open until the process ends


def set_up_logging() -> None:
  """Lets orbax, TFDS and grain log warnings only, until the process ends.

  A failed save is reported as one line; threads of orbax that fail later, some
  when the interpreter ends, are silent.
  """
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
  logging.set_verbosity(logging.WARNING)
  _process.enter_context(checkpoint.without_tracebacks())
