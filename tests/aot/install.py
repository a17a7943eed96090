"""Unpacks the compiler of a platform that this machine does not have.

  python tests/aot/install.py tpu FOLDER
  python tests/aot/install.py cuda FOLDER

Into a folder of its own: an installed libtpu would look for a TPU whenever jax
starts. What lies there already stays.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import subprocess
import sys


def requirements(platform: str) -> list[str]:
  """The wheels that the installed jax asks for."""
  if platform == 'cuda':
    version = importlib.metadata.version('jax')
    return [f'jax-cuda13-{part}=={version}' for part in ('plugin', 'pjrt')]
  asked = importlib.metadata.requires('jax')
  (libtpu,) = (x for x in asked if re.match(r'libtpu\b.*extra == .tpu', x))
  return [libtpu.partition(';')[0].strip()]


def main(platform: str, folder: str):
  wheels = requirements(platform)
  done = pathlib.Path(folder) / 'installed.txt'
  if done.exists() and done.read_text() == repr(wheels):
    return
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps']
  target = ['--upgrade', '--target', folder]
  subprocess.run([*pip, *target, *wheels], check=True)
  done.write_text(repr(wheels))


if __name__ == '__main__':
  main(*sys.argv[1:])
