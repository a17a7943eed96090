"""The manifest of a checkpoint: the size and the SHA-256 of every file.

It is written last, whole or not at all, and sealed by a digest of its own.
Array files have no sums, so this is what notices flipped bits.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mira_jax import files

MANIFEST = 'MIRA_INTEGRITY.json'


def seal(folder: pathlib.Path, accuracy: float | None) -> None:
  """Writes the manifest of a step's folder, whose files are complete."""
  content = {
    name: {'size': size, 'sha256': files.sha256(folder / name)}
    for name, size in _sizes(folder).items()
  }
  _write(
    folder, {'step': int(folder.name), 'accuracy': accuracy, 'files': content}
  )


def _write(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
  text = json.dumps({**content, 'seal': files.json_sha256(content)}, indent=1)
  files.write_text(folder / MANIFEST, text)


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """The manifest of a step's folder; None when it is missing or damaged."""
  try:
    content = json.loads((folder / MANIFEST).read_text())
    seal = content.pop('seal')
  except (OSError, ValueError, LookupError, TypeError, AttributeError):
    return None
  return content if seal == files.json_sha256(content) else None


def rate(folder: pathlib.Path, accuracy: float) -> None:
  """Sets the accuracy of a sealed step."""
  content = read(folder)
  if content is None:
    raise OSError(f'{folder / MANIFEST} is missing or damaged')
  _write(folder, content | {'accuracy': accuracy})


def verify(folder: pathlib.Path, part: str = '') -> str:
  """Describes what is wrong with a step's folder; '' when it is valid.

  Sizes are compared first, because that costs nothing, then digests; of a
  `part` alone the files whose paths begin so.
  """
  try:
    return _trouble(folder, part)
  except OSError as error:
    return f'{error.filename} cannot be read: {error.strerror}'


def _trouble(folder: pathlib.Path, part: str) -> str:
  content = read(folder)
  if content is None:
    return f'{MANIFEST} is missing or unreadable'
  if str(content['step']) != folder.name:
    return f'it was written as step {content["step"]} and renamed'
  expected = {n: x for n, x in content['files'].items() if n.startswith(part)}
  actual = {n: x for n, x in _sizes(folder).items() if n.startswith(part)}
  for name in sorted(expected.keys() | actual.keys()):
    if name not in actual:
      return f'{name} is missing'
    if name not in expected:
      return f'{name} is not in {MANIFEST}'
    if expected[name]['size'] != actual[name]:
      return f'{name} has {actual[name]} of {expected[name]["size"]} bytes'
  for name in expected:
    if files.sha256(folder / name) != expected[name]['sha256']:
      return f'{name} does not match {MANIFEST}'
  return ''


def _sizes(folder: pathlib.Path) -> dict[str, int]:
  """Bytes of every file below `folder`, by sorted relative path."""
  paths = (p for p in folder.rglob('*') if not p.name.startswith(MANIFEST))
  return {
    path.relative_to(folder).as_posix(): path.stat().st_size
    for path in sorted(paths)
    if path.is_file()
  }
