"""Finds the parts of a download, wherever they lie.

Archives unpack to a folder of their own name, cloud drives add '-002' to it,
and users give the folder above the right one: parts are found by their names.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Iterator

from mira_jax.data import trees
from mira_jax.data.listing import natural
from mira_jax.errors import MiraInputError

_DEPTH = 4  # levels that are searched below the given folder
# A folder with more folders in it holds clips or subjects, not parts.
_MOST_PARTS = 300
_COPY = re.compile(r'(-\d{3}|\s*\(\d+\)|-\d{8}t\d{6}z(-\d+)*)$')


class Tree:
  """A download below `root`.

  Attributes:
    root: the given folder.
    layout: the expected tree, for errors.
    missing: names of the parts that were needed and not found.
  """

  def __init__(self, root: str | os.PathLike[str], layout: str):
    trees.check_root(root)
    self.root = pathlib.Path(root).absolute()
    self.layout = layout
    self.missing: list[str] = []
    self._folders = list(_folders(self.root, _DEPTH))

  def find(self, *names: str) -> pathlib.Path | None:
    """The folder of one of the names, such as 'Clip/original', or None."""
    for name in names:
      wanted = [plain(part) for part in name.split('/')]
      for folder in self._folders:
        if [plain(part) for part in folder.parts[-len(wanted) :]] == wanted:
          return _innermost(folder)
    return None

  def need(self, *names: str) -> pathlib.Path:
    """As `find`; what is not found is reported by `check`."""
    found = self.find(*names)
    if found is None:
      self.missing.append(names[0])
      return self.root / names[0]
    return found

  def files(self, pattern: str) -> list[pathlib.Path]:
    """Files whose name fits a regular expression, upper ones first."""
    fits = re.compile(pattern, re.IGNORECASE).fullmatch
    found = (file for folder in self._folders for file in _files(folder))
    return [file for file in found if fits(file.name)]

  def need_file(self, pattern: str, name: str) -> pathlib.Path:
    """The first such file; what is not found is reported by `check`."""
    if not (found := self.files(pattern)):
      self.missing.append(name)
    return found[0] if found else self.root / name

  def check(self) -> None:
    """Raises MiraInputError('wrong_root') if a needed part was not found."""
    if not self.missing:
      return
    inside = sorted(p.name + '/' * p.is_dir() for p in self.root.iterdir())
    hint = (
      f'not found: {", ".join(self.missing[:3])}. Here are '
      f'{", ".join(inside[:5]) or "no files"}. Unpack archives first '
      '(mira unpack). Expected:'
    )
    below = f'\n{self.layout}'
    raise MiraInputError('wrong_root', self.root, hint, below=below)


def plain(name: str) -> str:
  """A folder's name without case, punctuation and the marks of copies."""
  name = name.lower()
  while (shorter := _COPY.sub('', name)) != name:
    name = shorter
  return re.sub(r'[^a-z0-9]+', '', name)


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Folders right below one, in natural order; none if it is not there."""
  try:
    with os.scandir(folder) as entries:
      names = [e.name for e in entries if os.path.isdir(e.path)]
  except OSError:
    return []
  return [folder / name for name in sorted(visible(names), key=natural)]


def visible(names: Iterable[str]) -> list[str]:
  """Names without those of hidden files and of systems' own."""
  return [name for name in names if not trees.is_hidden(name)]


def matching(
  folder: pathlib.Path, levels: int, pattern: str
) -> Iterator[tuple[pathlib.Path, re.Match[str]]]:
  """Paths so many levels below a folder that match, in natural order."""
  fits = re.compile(pattern, re.IGNORECASE).fullmatch
  found = folder.glob('/'.join('*' * levels))
  for path in sorted(found, key=lambda path: natural(str(path))):
    inside = path.relative_to(folder)
    name = fits(inside.as_posix())
    if name and len(visible(inside.parts)) == levels:
      yield path, name


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  with os.scandir(folder) as entries:
    names = [e.name for e in entries if e.is_file()]
  return [folder / name for name in sorted(visible(names), key=natural)]


def _folders(root: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  """A folder and those below it, the upper ones first.

  Links are followed, but no folder is given twice: links may form circles.
  """
  level, seen = [root], {root.resolve()}
  for _ in range(depth + 1):
    yield from level
    inside = [subfolders(folder) for folder in level]
    below = [x for found in inside if len(found) <= _MOST_PARTS for x in found]
    real = {path.resolve(): path for path in reversed(below)}
    level = [path for key, path in reversed(real.items()) if key not in seen]
    seen |= real.keys()


def _innermost(folder: pathlib.Path) -> pathlib.Path:
  """Archives often hold a folder of the name that they are unpacked to."""
  same = [f for f in subfolders(folder) if plain(f.name) == plain(folder.name)]
  return _innermost(same[0]) if len(same) == 1 else folder
