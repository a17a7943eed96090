"""The manifest of a checkpoint: the size and the SHA-256 of every file.

It is written last, whole or not at all, and sealed by a digest of its own.
Array files have no sums, so this is what notices flipped bits.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mira_jax import files

MANIFEST = 'MIRA_INTEGRITY.json'
META = 'meta'  # item of a step with the identity of the run
_THREADS = min(8, os.cpu_count() or 1)  # hashlib releases the interpreter
_UNREADABLE = (
  OSError,
  ValueError,
  LookupError,
  TypeError,
  AttributeError,
  RecursionError,
)


def seal(folder: pathlib.Path, accuracy: float | None) -> None:
  """Writes the manifest of a step's folder.

  Args:
    folder: named after the step; its files are complete.
    accuracy: of the step; None was not measured.
  """
  sizes = _sizes(folder)
  digests = _digests(folder, sizes)
  content = {
    name: {'size': sizes[name], 'sha256': digests[name]} for name in sizes
  }
  write(
    folder, {'step': int(folder.name), 'accuracy': accuracy, 'files': content}
  )


def write(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a manifest with the digest of its content."""
  text = json.dumps({**content, 'seal': files.json_sha256(content)}, indent=1)
  files.write_text(folder / MANIFEST, text)


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """The manifest of a step's folder; None when it is missing or damaged."""
  try:
    content = json.loads((folder / MANIFEST).read_text())
    seal_ = content.pop('seal')
    accuracy = content['accuracy']
    typed = accuracy is None or type(accuracy) in (int, float)
    typed &= all(
      {'size', 'sha256'} <= x.keys() for x in content['files'].values()
    )
  except _UNREADABLE:
    return None
  return content if typed and seal_ == files.json_sha256(content) else None


def rate(folder: pathlib.Path, accuracy: float) -> None:
  """Sets the accuracy of a sealed step."""
  content = read(folder)
  if content is None:
    raise OSError(f'{folder / MANIFEST} is missing or damaged')
  write(folder, content | {'accuracy': accuracy})


def verify(folder: pathlib.Path, part: str = '') -> str:
  """Describes what is wrong with a step's folder; '' when it is valid.

  Sizes are compared first, because that costs nothing, then digests.

  Args:
    folder: of the step.
    part: only the files whose paths begin so.
  """
  try:
    return _trouble(folder, part)
  except OSError as error:
    return f'{error.filename} cannot be read: {error.strerror}'


def _trouble(folder: pathlib.Path, part: str) -> str:
  content = read(folder)
  if content is None:
    return f'{MANIFEST} is missing or unreadable'
  step = _step(folder, content)
  if step is not None and str(step) != folder.name:
    return f'it was written as step {step} and renamed'
  expected = {n: x for n, x in content['files'].items() if n.startswith(part)}
  actual = {n: x for n, x in _sizes(folder).items() if n.startswith(part)}
  for name in sorted(expected.keys() | actual.keys()):
    if name not in actual:
      return f'{name} is missing'
    if name not in expected:
      return f'{name} is not in {MANIFEST}'
    if expected[name]['size'] != actual[name]:
      return f'{name} has {actual[name]} of {expected[name]["size"]} bytes'
  for name, digest in _digests(folder, expected).items():
    if digest != expected[name]['sha256']:
      return f'{name} does not match {MANIFEST}'
  return ''


def _step(folder: pathlib.Path, content: Mapping[str, Any]) -> Any:
  """The step that a folder was written for; None where nothing names it.

  Manifests of version 0.1.0 lack it; the sealed facts of the run have it.
  """
  if 'step' in content:
    return content['step']
  try:
    return json.loads((folder / META / 'metadata').read_bytes())['step']
  except _UNREADABLE:
    return None


def _sizes(folder: pathlib.Path) -> dict[str, int]:
  """Bytes of every file below `folder`, by sorted relative path."""
  paths = (p for p in folder.rglob('*') if not p.name.startswith(MANIFEST))
  return {
    path.relative_to(folder).as_posix(): path.stat().st_size
    for path in sorted(paths)
    if path.is_file()
  }


def _digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
  """SHA-256 of files by relative path, computed in threads."""
  names = sorted(names)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    digests = threads.map(files.sha256, [folder / name for name in names])
    return dict(zip(names, digests, strict=True))
