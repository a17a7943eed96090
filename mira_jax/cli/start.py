"""What commands do before they compute."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from mira_jax import terminal
from mira_jax.cli import hosts, weight_flags
from mira_jax.devices import memory, platform
from mira_jax.inference import (
  backends,
  engine,
  exported,
  runtimes,
  scorer,
)
from mira_jax.kernels import dispatch
from mira_jax.tuning import verdicts

if TYPE_CHECKING:
  from mira_jax.inference import predictor

DEFAULT_RUN = 'runs/quickstart'
_process = contextlib.ExitStack()  # open until the process ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --device and --attention, for `device`."""
  platform.add_argument(parser)
  text = 'the implementation to use, whether or not its check here failed; by '
  text += 'default the fastest (mira tune)'
  parser.add_argument(
    '--attention', choices=tuple(dispatch.IMPLEMENTATIONS), help=text
  )


def add_backend(parser: argparse.ArgumentParser) -> None:
  """Adds --backend and --dtype, for `serve`."""
  text = 'what computes on a CPU (extra `cpu`); else jax'
  parser.add_argument('--backend', choices=runtimes.BACKENDS, help=text)
  text = "else that of the model; openvino's is bfloat16 where it is fast"
  parser.add_argument('--dtype', choices=tuple(exported.TOLERANCES), help=text)


def add_model(parser: argparse.ArgumentParser) -> None:
  """Adds --workdir or --weights, and what the latter may lack, for `load`."""
  model = parser.add_mutually_exclusive_group()
  run = 'folder of a finished run'
  model.add_argument('--workdir', metavar='RUN', default=DEFAULT_RUN, help=run)
  weights = 'what `mira convert` reads, or an export, instead'
  model.add_argument('--weights', metavar='SRC', help=weights)
  weight_flags.add(parser)


def load(args: argparse.Namespace, **options: Any) -> predictor.Predictor:
  """The model of those flags; prints what was assumed. See `predictor.load`."""
  # They read clips, which training and evaluation do not.
  from mira_jax.inference import predictor, untrusted

  model = predictor.load(
    args.weights or args.workdir,
    time_limit=untrusted.SECONDS,
    **options,
    **dataclasses.asdict(weight_flags.overrides(args)),
  )
  notes = list(model.notes)
  names = [x.get('name', '') for x in model.metadata.get('datasets') or ()]
  if names and all(name.startswith('synthetic_faces') for name in names):
    notes.append('the model was trained on synthetic faces: a demonstration')
  for note in notes:
    terminal.say(f'note: {note}', error=True)
  return model


def serve(
  args: argparse.Namespace, made: engine.Engine, card: dict[str, Any]
) -> scorer.Scorer:
  """The model by the backend of the flags; see `backends.serve`."""
  return backends.serve(made, card, args.backend, args.dtype)


def device(
  args: argparse.Namespace, meet: Callable[[], None] | None = None
) -> None:
  """Starts JAX and chooses among the implementations of attention.

  Raises:
    MiraInputError: see `platform.start`.
  """
  forced = args.attention
  verdict = verdicts.Verdict() if forced else verdicts.examine(args.device)
  platform.start(args.device, meet=meet)
  verdicts.adopt(verdict, forced)
  engine.use_compile_cache()


@contextlib.contextmanager
def devices(args: argparse.Namespace) -> Iterator[None]:
  """`device` with the hosts of the flags; see `memory.explained`.

  Raises:
    MiraInputError: see `platform.start` and `hosts.join`.
  """
  _set_up_logging()
  with memory.explained():
    device(args, meet=lambda: hosts.join(args))
    yield


@functools.cache
def _set_up_logging() -> None:
  """Lets orbax, TFDS and grain log warnings only, until the process ends.

  A failed save is reported as one line; threads of orbax that fail later, some
  when the interpreter ends, are silent.
  """
  from mira_jax.train import checkpoint  # slow; most commands need none

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
  logging.set_verbosity(logging.WARNING)
  _process.enter_context(checkpoint.without_tracebacks())
