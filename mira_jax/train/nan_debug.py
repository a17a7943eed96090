"""NaN debugging: which operation made a step not finite, and on which line.

`jax_debug_nans` alone would check the result of every jitted function of every
step. Here steps run compiled until one is not finite; that one is repeated
under it, operation by operation, from the same arguments.
"""

from __future__ import annotations

import pathlib
import re
import traceback
from collections.abc import Callable
from typing import Any

import jax

from mira_jax.train import guard

_PACKAGE = pathlib.Path(__file__).parents[1]


def checked(step: Any) -> Callable:
  """A step of `step.make_train_step`, with `donate=False`, that is watched.

  Where an update is not finite it raises a MiraInputError that names the
  operation and the line.
  """

  def run(state, batch, key):
    new, metrics = step(state, batch, key)
    number, row = jax.device_get((new.step, metrics))
    if row['verdict'] == guard.NOT_FINITE:
      cause = find(step.__wrapped__, state, batch, key)
      raise guard.not_finite(number, row, cause)
    return new, metrics

  return run


def find(function: Callable, *args: object) -> str:
  """Names the first operation of a function that makes a NaN, and its line.

  Infinity alone is no cause: a maximum begins at minus infinity on purpose.
  """
  try:
    with jax.disable_jit(), jax.debug_nans(True), jax.transfer_guard('allow'):
      function(*args)
  except FloatingPointError as error:
    text = str(error).splitlines()[0]
    found = re.search(r'\((\w+)\) encountered in (.*?)\.?$', text)
    text = f'the first {found[1]} is of {found[2]}' if found else text
    return ', at '.join([text, *_lines(error)[-1:]])
  return (
    'operation by operation nothing is nan: a number is infinite, or only the '
    'compiled step is not finite'
  )


def _lines(error: BaseException | None) -> list[str]:
  """Lines of this package that led to an error, the innermost last.

  In the backward pass those of the forward one are in the cause of the error.
  """
  lines = []
  while error is not None:
    for frame in traceback.extract_tb(error.__traceback__):
      path = pathlib.Path(frame.filename)
      if path.is_relative_to(_PACKAGE) and frame.filename != __file__:
        lines.append(f'{path.relative_to(_PACKAGE.parent)}:{frame.lineno}')
    error = error.__cause__
  return lines
