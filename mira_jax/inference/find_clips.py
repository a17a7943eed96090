"""Clips that a user names: files, folders, patterns; read ahead of use."""

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
from mira_jax.video import container, decode, face_crop, footage

Result = TypeVar('Result')
_GLANCES = 8  # frames in which a face is searched


def expand(name: str, *, allow_gif: bool = False) -> trees.Walk:
  """The clips that a name stands for, in natural order, and unusable files.

  Without any, it is the name itself: its error is that of reading it.

  Args:
    name: a file; a folder with frames; a folder in which, at any depth, there
      are videos or folders with frames, see `trees.walk`; or a pattern such as
      'clips/*.mp4', where ** is any depth.
    allow_gif: whether GIFs are clips of a folder, too.
  """
  found = trees.Walk()
  if glob.has_magic(name) and not os.path.exists(name):
    for path in sorted(glob.glob(name, recursive=True), key=natural):
      found.add(expand(path, allow_gif=allow_gif))
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


def read_face(
  path: str | os.PathLike[str], short_side: int, *, allow_gif: bool = False
) -> footage.Video:
  """A clip cut to the square of its largest face, see `face_crop.haar`.

  Raises:
    MiraInputError: no face is found ('no_face'), or see `decode.read_clip`.
  """
  frames, _, _ = decode.glance(path, _GLANCES, None, allow_gif=allow_gif)
  square = face_crop.haar(frames)
  if square is None:
    hint = 'no face is found in it; without --track all of the frame is taken'
    raise MiraInputError('no_face', path, hint)
  return decode.read_clip(
    path, short_side=short_side, square=square, allow_gif=allow_gif
  )


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
