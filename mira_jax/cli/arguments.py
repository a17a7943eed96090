"""Types of command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(low: int, *, most: int | None = None) -> Callable[[str], int]:
  """An argparse type: a whole number of at least `low`, and at most `most`."""

  def parse(text: str) -> int:
    value = int(text)
    if value < low:
      raise argparse.ArgumentTypeError(f'{text} is less than {low}')
    if most is not None and value > most:
      raise argparse.ArgumentTypeError(f'{text} is more than {most}')
    return value

  parse.__name__ = 'whole number'  # what argparse calls it in its errors
  return parse


def above_zero(text: str) -> float:
  """An argparse type: a number above zero."""
  value = float(text)
  if not 0 < value < float('inf'):
    raise argparse.ArgumentTypeError(f'{text} is not above 0')
  return value
