"""Finds clips by file, folder or pattern, and reads them ahead of use."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

from mira_jax.data import trees
from mira_jax.data.listing import natural
from mira_jax.errors import MiraInputError
from mira_jax.inference import faces
from mira_jax.video import container, decode, footage

Result = TypeVar('Result')


def expand(name: str, allow_gif: bool = False) -> trees.Walk:
  """The clips that a name stands for, in natural order, and the failures.

  It is a file, a folder of frames, a folder with clips in it, see `trees.walk`,
  or a pattern such as 'clips/*.mp4', where ** is any depth. A name without any
  clip is a clip itself: reading it gives the error.
  """
  found = trees.Walk()
  if glob.has_magic(name) and not os.path.exists(name):
    for path in sorted(glob.glob(name, recursive=True), key=natural):
      found.add(expand(path, allow_gif))
    # ** gives a folder, and what is in it.
    found.clips = list(dict.fromkeys(found.clips))
  elif os.path.isdir(name):
    found = trees.walk(name, container.SUFFIXES + ('.gif',) * allow_gif)
    found.clips = [os.path.join(name, c) if c else name for c in found.clips]
    found.failures = [
      dataclasses.replace(failure, path=os.path.join(name, failure.path))
      for failure in found.failures
    ]
  if not (found.clips or found.failures):
    found.clips = [name]
  return found


def read(
  path: str | os.PathLike[str],
  *,
  short_side: int | None = None,
  fps: float | None = None,
  allow_gif: bool = False,
  crop: faces.Crop | None = None,
) -> footage.Video:
  """Reads a clip, or with `crop` the square of its largest face.

  `fps` is used instead of the clip's own. GIFs, which are pictures more often
  than clips, are read with `allow_gif`.

  Raises:
    MiraInputError: a GIF ('format_not_allowed'), no face to crop ('no_face'),
      or see `decode.read_clip`.
  """
  is_gif = os.fspath(path).lower().endswith('.gif')
  if is_gif and os.path.isfile(path) and not allow_gif:
    hint = 'GIFs are not read, unless with --allow-gif'
    raise MiraInputError('format_not_allowed', path, hint)
  if crop:
    return crop.read(path, short_side, fps)
  clip = decode.read_clip(path, short_side=short_side)
  return clip.at(fps) if fps else clip


def ahead(
  read: Callable[[str], Result], names: Iterable[str], threads: int
) -> Iterator[tuple[str, Result | Exception]]:
  """Each name with `read(name)` or its error, in order, read ahead by threads.

  At most `threads` + 1 results are held.
  """

  def attempt(name: str) -> tuple[str, Result | Exception]:
    try:
      return name, read(name)
    except Exception as error:
      return name, error

  waiting: collections.deque[futures.Future] = collections.deque()
  pool = futures.ThreadPoolExecutor(threads)
  try:
    for name in names:
      waiting.append(pool.submit(attempt, name))
      if len(waiting) > threads:
        yield waiting.popleft().result()
    for future in waiting:
      yield future.result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
