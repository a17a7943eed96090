"""The configuration files that come with the package, found by name."""

from __future__ import annotations

import ast
import pathlib

from mira_jax.errors import MiraInputError, nearest


def folder() -> pathlib.Path:
  """`configs/`: inside the package in a wheel, beside it in a checkout."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def names() -> dict[str, str]:
  """Name of every shipped configuration -> the first line of its docstring."""
  found = {}
  for path in sorted(folder().glob('[a-z]*.py')):
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    found[path.stem] = text.partition('\n')[0]
  return found


def find(text: str) -> tuple[str, str | None]:
  """FILE and ARGUMENT of a configuration that is named by file or by name.

  Args:
    text: such as 'dfew:B', 'configs/dfew.py:B' or 'mine/other.py'. A file of
      that name comes first, then the shipped one: in an empty folder
      'configs/dfew.py' is the shipped file as well.

  Raises:
    MiraInputError: there is neither ('not_found').
  """
  if pathlib.Path(text).is_file():  # its folders may have colons
    return text, None
  name, colon, last = text.rpartition(':')
  name, argument = (name, last) if colon else (text, None)
  if pathlib.Path(name).is_file():
    return name, argument
  path = pathlib.PurePath(name)
  shipped = folder() / f'{path.name.removesuffix(".py")}.py'
  if path.parent.as_posix() not in ('.', 'configs') or not shipped.is_file():
    near = nearest(path.stem, names()) or '; see mira configs'
    hint = f'there is no such file{near}'
    raise MiraInputError('not_found', f'--config={text}', hint)
  return str(shipped), argument
