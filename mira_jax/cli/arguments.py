"""Types of command-line arguments, and how help shows them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

FACE_MODEL = 'file of YuNet, which finds faces instead of the Haar cascade'


class Help(argparse.RawDescriptionHelpFormatter):
  """Help with descriptions as they are, and the default of every flag."""

  def _get_help_string(self, action: argparse.Action) -> str:
    text = action.help or ''
    if action.default in (None, False, '', argparse.SUPPRESS):
      return text
    return f'{text} (default: %(default)s)'


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


def numbers(text: str) -> list[int]:
  """An argparse type: whole numbers with commas between, such as 1,5,20."""
  return [int(part) for part in text.split(',')]


def above_zero(text: str) -> float:
  """An argparse type: a number above zero."""
  value = float(text)
  if not 0 < value < float('inf'):
    raise argparse.ArgumentTypeError(f'{text} is not above 0')
  return value
