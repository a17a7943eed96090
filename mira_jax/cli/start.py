"""What `mira train` and `mira eval` do before they compute."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator

from absl import flags, logging

from mira_jax.cli import hosts
from mira_jax.devices import memory, platform
from mira_jax.inference import engine
from mira_jax.train import checkpoint

_process = contextlib.ExitStack()  # open until the process ends


@contextlib.contextmanager
def devices(args: argparse.Namespace) -> Iterator[None]:
  """Starts JAX on the devices and hosts of the flags; see `memory.explained`.

  Raises:
    MiraInputError: see `platform.start` and `hosts.join`.
  """
  _set_up_logging()
  with memory.explained():
    platform.start(args.device, meet=lambda: hosts.join(args))
    engine.use_compile_cache()
    yield


@functools.cache
def _set_up_logging() -> None:
  """Lets orbax, TFDS and grain log warnings only, until the process ends.

  A failed save is reported as one line; threads of orbax that fail later, some
  when the interpreter ends, are silent.
  """
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
  logging.set_verbosity(logging.WARNING)
  _process.enter_context(checkpoint.without_tracebacks())
