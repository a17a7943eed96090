"""Which operation made a step not finite, and on which line.

A compiled step says nothing about what is inside it. `jax_debug_nans` does,
but looks only for NaN, asks whether every jitted function is finite, and needs
arguments that were not donated. Here steps run compiled until one is not
finite; that one is repeated operation by operation from the same arguments.
Infinity alone blames nobody: a maximum begins at minus infinity on purpose.
"""

from __future__ import annotations

import pathlib
import re
import traceback
from collections.abc import Callable, Iterator

import jax

from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.train import guard, log

_PACKAGE = pathlib.Path(__file__).parent


def blaming(step: Callable) -> Callable:
  """A training step that raises when its update is not finite.

  Args:
    step: of `steps.make_train_step`, with `donate=False`.

  Returns:
    A step like it; its MiraInputError names the operation and the line.
  """

  def blame(state, batch, key):
    new, metrics = step(state, batch, key)
    number, row = jax.device_get((new.step, metrics))
    if row['verdict'] == guard.NOT_FINITE:
      path = log.what_is_not_finite(number, row)
      hint = culprit(step.__wrapped__, state, batch, key)
      code = ExitCode.NUMERIC
      raise MiraInputError('not_finite', path, hint, exit_code=code)
    return new, metrics

  return blame


def culprit(function: Callable, *args: object) -> str:
  """The first operation of a function whose result is not finite, in words.

  Args:
    function: of arrays, not jitted.
    args: of it.
  """
  try:
    with jax.disable_jit(), jax.debug_nans(True), jax.transfer_guard('allow'):
      function(*args)
  except FloatingPointError as error:
    return _told(error)
  return (
    'operation by operation nothing is nan: a number is infinite, or only the '
    'compiled step is not finite'
  )


def _told(error: FloatingPointError) -> str:
  """What JAX found, as 'the first nan is of dot_general, at FILE:LINE'."""
  text = str(error).splitlines()[0]
  found = re.search(r'\((\w+)\) encountered in (.*?)\.?$', text)
  what = f'the first {found[1]} is of {found[2]}' if found else text
  places = list(_places(error))
  return f'{what}, at {places[-1]}' if places else what


def _places(error: BaseException | None) -> Iterator[str]:
  """Lines of this package that led to an error, the innermost last.

  In the backward pass those of the forward one are in the cause of the error.
  """
  while error is not None:
    for frame in traceback.extract_tb(error.__traceback__):
      path = pathlib.Path(frame.filename)
      if path.is_relative_to(_PACKAGE) and path != pathlib.Path(__file__):
        yield f'{path.relative_to(_PACKAGE.parent)}:{frame.lineno}'
    error = error.__cause__
