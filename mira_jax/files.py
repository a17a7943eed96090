"""Files of a run: written whole, and set aside when they are damaged."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Says what could not be written, which a full disk does not."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or os.fspath(path)
    raise


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file whole: a process that is killed leaves what was there."""
  part = path.with_name(path.name + '.part')
  clear_for_file(part)
  with naming(path):
    part.write_text(text, encoding='utf-8')
    os.replace(part, path)


def set_aside(path: pathlib.Path, why: str) -> pathlib.Path:
  """Renames what cannot be used, with a warning; returns its new path.

  Nothing is lost: the new name is NAME.damaged, NAME.damaged-2, ...
  """
  numbers = itertools.chain([''], (f'-{i}' for i in itertools.count(2)))
  names = (path.with_name(f'{path.name}.damaged{n}') for n in numbers)
  aside = next(name for name in names if not os.path.lexists(name))
  path.rename(aside)
  text = '%s is damaged (%s): kept as %s, the run goes on without it'
  logging.warning(text, path, why, aside.name)
  return aside


def clear_for_file(path: pathlib.Path) -> None:
  """Sets aside whatever is no file where one is about to be written."""
  if path.exists() and not path.is_file():
    set_aside(path, 'it is not a file')


def clear_for_folder(path: pathlib.Path) -> None:
  """Sets aside whatever is no folder where one is needed."""
  if os.path.lexists(path) and not path.is_dir():
    set_aside(path, 'it is not a folder')
