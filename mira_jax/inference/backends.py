"""Serves a model by another runtime than JAX's: `--backend`.

The model is exported once, see `export`, into the cache of the user, and read
from there when the same model is served again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import jax
import numpy as np

from mira_jax import files, terminal
from mira_jax.devices import hardware
from mira_jax.errors import MiraInputError
from mira_jax.inference import exported, runtimes
from mira_jax.inference.engine import Engine
from mira_jax.inference.exported import Card
from mira_jax.models.vivit import ViViT
from mira_jax.weights import weights_file

_LARGE = 1e10  # FLOP of a window that are worth another runtime
_KEPT = 4  # programs in the cache, those that were used last
_LONGEST = 24 * 3600  # seconds of a conversion


def check(backend: str | None, int8: bool) -> None:
  """Checks what is asked of a backend before weights are read.

  Raises:
    MiraInputError: eight bits of JAX by another backend ('bad_flag'), or its
      packages are not installed ('no_backend').
  """
  if backend in (None, 'jax'):
    return
  if int8:
    hint = 'it is for jax; openvino needs clips for it: mira export --int8'
    raise MiraInputError('bad_flag', f'--int8 --backend={backend}', hint)
  runtimes.need(backend)


def serve(
  engine: Engine,
  card: Card,
  backend: str | None,
  dtype: str | None = None,
) -> Engine | exported.Exported:
  """A scorer of the same model and batch size by a backend.

  Says in a line which type serves; without a backend JAX does, and a line tells
  of a faster one.

  Args:
    engine: the model in JAX; of a backbone, logits are features.
    card: the metadata of its weights.
    backend: one of `runtimes.BACKENDS`; None is JAX.
    dtype: of the computation, see `export.write`.

  Raises:
    MiraInputError: the packages are not installed ('no_backend'), or see
      `export.write`.
  """
  if backend in (None, 'jax'):
    if backend is None:
      _advise(engine.model)
    return engine
  runtimes.need(backend)
  folder = files.cache() / 'programs' / _key(engine, card, backend, dtype)
  found = _cached(folder, engine.batch_size, backend)
  if not found:
    from mira_jax.inference import export  # which draws: slow to import

    runtimes.need(backend, convert=True)
    terminal.say(f'mira: converting the model for {backend}', error=True)
    part = folder.with_name(f'{folder.name}.{os.getpid()}')
    with _explained(backend), export.finished(part, folder):
      export.convert(engine, card, part, backend, dtype)
    found = exported.load(folder, engine.batch_size, backend=backend)
  with contextlib.suppress(OSError):  # it is another user's
    os.utime(folder)
  _forget(folder.parent)
  golden, used = found.card['golden'], found.card['model']['dtype']
  if used == 'bfloat16' and not hardware.has_bfloat16():
    used = 'float32, since this processor has no bfloat16'
  text = f'mira: backend: {backend}, {used}; golden pair: '
  text += f'within {golden["difference"]:.1e} of JAX in float32'
  terminal.say(text, error=True)
  return found


def _cached(
  folder: pathlib.Path, batch_size: int, backend: str
) -> exported.Exported | None:
  """A program of the cache; None where it is not there, or damaged."""
  if not exported.is_export(folder):
    return None
  try:
    return exported.load(folder, batch_size, backend=backend)
  except (MiraInputError, OSError):
    return None


@contextlib.contextmanager
def _explained(backend: str) -> Iterator[None]:
  """Says what to do about a conversion that fails."""
  advice = {
    'differs': 'use --dtype=float32 or --backend=jax',
    'not_written': 'XDG_CACHE_HOME names another folder for programs',
  }
  try:
    yield
  except MiraInputError as error:
    if error.code not in advice:
      raise
    hint = f'{error.hint}; {advice[error.code]}'
    differs = error.code == 'differs'  # of files that are gone
    path = f'--backend={backend}' if differs else error.path
    code = error.exit_code
    raise MiraInputError(error.code, path, hint, exit_code=code) from error


def _key(engine: Engine, card: Card, backend: str, dtype: str | None) -> str:
  """A digest of all that a program depends on."""
  versions = [
    distribution.version
    for name in ('mira-jax', 'jax', 'jax2onnx', *runtimes.PACKAGES[backend])
    for distribution in importlib.metadata.distributions(name=name)
  ]
  fields = {
    'model': repr(engine.model),
    'card': [card['preprocessing'], card['class_names'], engine.units],
    'asked': [backend, dtype, hardware.processor()],
    'versions': versions,
  }
  digest = hashlib.sha256(files.json_sha256(fields).encode())
  for name, array in sorted(weights_file.flatten(engine.variables).items()):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(jax.device_get(array)).data)
  return digest.hexdigest()[:32]


def _forget(folder: pathlib.Path) -> None:
  """Removes all programs but those that were used last.

  Those with a suffix are being converted, or were when a process was killed.
  """
  with contextlib.suppress(OSError):  # another process does the same
    used = {x: x.stat().st_mtime for x in folder.iterdir()}
    parts = [x for x in used if x.suffix]
    whole = sorted(used.keys() - parts, key=used.__getitem__)
    killed = [x for x in parts if time.time() - used[x] > _LONGEST]
    for old in (*whole[:-_KEPT], *killed):
      shutil.rmtree(old, ignore_errors=True)


def _advise(model: ViViT) -> None:
  """Tells of a faster runtime, where there is one."""
  on_cpu = jax.default_backend() == 'cpu' and hardware.has_bfloat16()
  width = model.dim**2 * (4 + 2 * model.mlp_ratio)
  blocks = 2 * math.prod(model.grid) * model.depth * width
  if on_cpu and blocks > _LARGE:
    text = 'mira: on this processor --backend=openvino is two to six times as '
    text += 'fast, in bfloat16; --backend=jax leaves out this line'
    terminal.say(text, error=True)
    if commands := runtimes.install('openvino'):
      terminal.say(f'mira: to install it: {commands}', error=True)
