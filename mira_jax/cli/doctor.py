"""Report what this machine offers: for a first look, and for bug reports.

  mira doctor [--json]

Versions, devices and their memory, video codecs, writable folders, caches, the
extras that are installed, and which attention runs for a ViT-B clip, and why.
Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import platform as host
import shutil
from importlib import metadata

from mira_jax import files, terminal
from mira_jax.cli import start
from mira_jax.errors import ExitCode, MiraInputError

GIVES_RESULT = True  # to programs, by --json
_PACKAGES = (
  *('mira-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint'),
  *('numpy', 'grain', 'tensorflow-datasets', 'av', 'opencv-python-headless'),
)
# Module that only an extra brings -> the extra.
_EXTRAS = {
  'jax_cuda13_plugin': 'cuda',
  'jax_cuda12_plugin': 'cuda12',
  'libtpu': 'tpu',
  'apache_beam': 'beam',
  'huggingface_hub': 'hub',
  'openvino': 'cpu',
  'torch': 'torch',
  'gradio': 'demo',
}
_CODECS = ('h264', 'hevc', 'vp9', 'av1', 'mpeg4', 'mjpeg')
_SHAPES = {'ViT-B, 16 frames of 224 pixels': (8, 1568, 12, 64)}
_LEAST = 2 << 30  # bytes of a disk that a run needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the device."""
  start.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Prints the report; USAGE if something would stop a run."""
  facts: dict[str, dict[str, str]] = {
    'versions': _versions(),
    'extras': _extras(),
    'codecs': _codecs(),
    'folders': _folders(),
  }
  try:
    start.device(args)
    facts['devices'] = _devices()
    facts['attention'] = _attention()
  except MiraInputError as error:
    facts['devices'] = {'problem': str(error)}
  problems = [
    f'{group}: {name}: {text}'
    for group, rows in facts.items()
    for name, text in rows.items()
    if name == 'problem' or text.startswith('problem')
  ]
  for group, rows in facts.items():
    width = max(map(len, rows), default=0)
    lines = (f'  {name:{width}}  {text}' for name, text in rows.items())
    terminal.say(group, *lines)
  terminal.say(*(problems or ['no problem found']))
  terminal.result(facts | {'problems': problems})
  return ExitCode.USAGE if problems else ExitCode.OK


def _versions() -> dict[str, str]:
  found = {'python': host.python_version(), 'system': host.platform()}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = 'problem: not installed'
  return found


def _extras() -> dict[str, str]:
  return {
    extra: 'installed' if importlib.util.find_spec(module) else 'no'
    for module, extra in _EXTRAS.items()
  }


def _codecs() -> dict[str, str]:
  import av.codec  # slow

  return {
    name: 'read' if name in av.codec.codecs_available else 'problem: unknown'
    for name in _CODECS
  }


def _folders() -> dict[str, str]:
  found = {}
  for name, folder in {'here': pathlib.Path(), 'cache': files.cache()}.items():
    there = next(x for x in (folder, *folder.resolve().parents) if x.exists())
    free = shutil.disk_usage(there).free
    size = sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())
    text = f'{folder.resolve()}, {free / 2**30:.0f} GiB free'
    if name == 'cache':
      text += f', {size / 2**20:.0f} MiB used'
    if not os.access(there, os.W_OK):
      text = f'problem: cannot write to {text}'
    elif free < _LEAST:
      text = f'problem: little room in {text}'
    found[name] = text
  return found


def _devices() -> dict[str, str]:
  import jax

  found = {}
  for device in jax.devices():
    stats = device.memory_stats() or {}
    text = device.device_kind
    if limit := stats.get('bytes_limit'):
      text += f', {limit / 2**30:.0f} GiB'
    found[str(device)] = text
  if jax.default_backend() == 'cpu':
    from mira_jax.devices import hardware

    has = 'with' if hardware.has_bfloat16() else 'without'
    found['processor'] = f'{hardware.processor()}, '
    found['processor'] += f'{has} bfloat16'
    pages = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    found['memory'] = f'{pages / 2**30:.0f} GiB'
  return found


def _attention() -> dict[str, str]:
  """What runs for each of _SHAPES, by mode, and why."""
  import jax.numpy as jnp

  from mira_jax.kernels import dispatch

  found = {}
  for name, shape in _SHAPES.items():
    for mode in ('plain', 'flashlite', 'exact'):
      dtype, here = jnp.dtype('bfloat16'), dispatch.target()
      choice = dispatch.choose(dispatch.Request(shape, dtype, mode, here, True))
      found[f'{name}, {mode}'] = f'{choice.name} ({choice.why})'
  return found
