"""Reads and runs exports: programs in a folder, see `export`.

An export may come from anyone: its files are checked against the digests in
its card, and its program before it is compiled, see `untrusted`.
"""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from mira_jax import files
from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.inference import scorer, untrusted
from mira_jax.weights import weights_file
from mira_jax.weights.metadata import check_metadata, parse_metadata

Card = dict[str, Any]
Path = str | os.PathLike[str]

# In the folder of an export, beside weights_file.WEIGHTS.
PROGRAM = 'program.jax_export'
GOLDEN = 'golden.npz'
CARD = 'card.json'
FORMAT = 1
SEAL = 'card_sha256'

# The largest difference from the engine's float32 probabilities. Bfloat16 has
# 8 bits; a logit that is 0.1 off moves a probability by at most 0.025.
TOLERANCES = {'float32': 1e-5, 'bfloat16': 0.03}
GOLDEN_CLIPS = 2


class Exported(scorer.Scorer):
  """An export that was read; scores clips as an `engine.Engine` does.

  Attributes:
    card: the metadata in card.json.
    program: the program.
    seconds: that a call may take before the process ends; None is any time.
  """

  def __init__(
    self,
    program: jax_export.Exported,
    arrays: Mapping[str, np.ndarray],
    card: Card,
    batch_size: int,
    folder: pathlib.Path,
    seconds: float | None,
  ):
    self._file = folder / PROGRAM
    self.program, self.card, self.seconds = program, card, seconds
    self.frames = card['model']['frames']
    self.image_size = card['model']['image_size']
    self.batch_size = batch_size
    self.buckets = scorer.bucket_sizes(1, batch_size)
    self._arrays = jax.device_put(dict(arrays))
    self._call = jax.jit(program.call)

  def _score_bucket(self, windows: np.ndarray) -> np.ndarray:
    try:
      with untrusted.time_limit(self.seconds, self._file):
        scores = np.asarray(self._call(self._arrays, windows)['probabilities'])
    except Exception as error:  # a foreign program may fail in any way
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        raise
      raise untrusted.bad_program(self._file, error) from error
    shape = (len(windows), len(self.card['class_names']))
    if (scores.shape, scores.dtype) != (shape, np.float32):
      raise untrusted.bad_program(self._file, f'it gives {scores.shape}')
    if not np.isfinite(scores).all():
      hint = 'its probabilities are NaN or infinite; export the model again'
      raise checkpoint_error('not_finite', self._file, hint)
    return scores


def is_export(path: Path) -> bool:
  """Whether a folder is an export, or was one before it was damaged."""
  names = (CARD, PROGRAM, GOLDEN)
  return any(os.path.isfile(os.path.join(path, name)) for name in names)


def seal(card: Card) -> str:
  """A digest of a card without its own field."""
  rest = {name: x for name, x in card.items() if name != SEAL}
  return files.json_sha256(rest)


def load(
  folder: Path, batch_size: int = 8, seconds: float | None = None
) -> Exported:
  """Reads an export, after checking every digest.

  At most `batch_size` clips are one call; `seconds` are those of `Exported`,
  for commands, which own their process.

  Raises:
    MiraInputError: no export, a file that is missing or changed, one of
      another version or for other devices, or a program that would do more
      than compute ('unsafe_program').
  """
  folder = pathlib.Path(folder)
  card = _read_card(folder)
  for name, expected in card['files'].items():
    _check_file(folder / name)
    if files.sha256(folder / name) != expected:
      raise _changed(folder / name)
  here = jax_export.default_export_platform()
  if here not in card['platforms']:
    hint = f'it is for {", ".join(card["platforms"])}, and jax runs on {here}'
    raise checkpoint_error('other_platform', folder, hint)
  try:
    program = jax_export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
  except Exception as error:  # of any kind: fields are read at other places
    versions = f'jax {card["jax_version"]} wrote it, this is {jax.__version__}'
    hint = f'{versions}, which cannot read it ({error})'
    raise checkpoint_error('other_jax', folder / PROGRAM, hint) from error
  untrusted.check(program, folder / PROGRAM)
  variables, _ = weights_file.load_weights(folder / weights_file.WEIGHTS)
  arrays = weights_file.flatten(variables)
  return Exported(program, arrays, card, batch_size, folder, seconds)


def verify(folder: Path, seconds: float | None = None) -> float:
  """Runs the golden pair, one clip and both at once.

  Returns:
    The largest difference between probabilities.

  Raises:
    MiraInputError: see `load`; or a difference over the tolerance ('differs').
  """
  exported = load(folder, GOLDEN_CLIPS, seconds)
  clips, expected = _read_golden(pathlib.Path(folder) / GOLDEN, exported.card)
  found = [exported.probabilities(clips[:n]) for n in (1, len(clips))]
  differences = [np.abs(x - expected[: len(x)]).max() for x in found]
  largest = float(np.max(differences))  # NaN, if there is one
  allowed = exported.card['golden']['tolerance']
  if not largest <= allowed:
    device = jax.devices()[0].device_kind
    hint = f'{GOLDEN} differs by {largest:.1e} on {device}, over {allowed:.0e}'
    raise checkpoint_error('differs', pathlib.Path(folder) / PROGRAM, hint)
  return largest


def _read_golden(
  path: pathlib.Path, card: Card
) -> tuple[np.ndarray, np.ndarray]:
  """Clips and their probabilities; sizes are checked before memory is taken."""
  size = card['model']['image_size']
  clips = (GOLDEN_CLIPS, card['model']['frames'], size, size, 3)
  scores = (GOLDEN_CLIPS, len(card['class_names']))
  most = 2**16 + math.prod(clips) + 8 * math.prod(scores)
  try:
    with zipfile.ZipFile(path) as archive:
      if sum(member.file_size for member in archive.infolist()) > most:
        raise ValueError('it unpacks to more than two clips')
    with np.load(path) as golden:
      found, expected = golden['clips'], golden['probabilities']
    kinds = [(x.shape, x.dtype) for x in (found, expected)]
    if kinds != [(clips, np.uint8), (scores, np.float32)]:
      raise ValueError(f'it is not as {CARD} says')
  except files.BAD_ZIP as error:
    hint = f'it does not hold the golden pair ({error}); export it again'
    raise checkpoint_error('damaged', path, hint) from error
  return found, expected


def _read_card(folder: pathlib.Path) -> Card:
  """The card of an export that this version can run."""
  path = folder / CARD
  if not is_export(folder):
    hint = f'name a folder that mira export made; there is no {CARD}'
    raise checkpoint_error('not_an_export', folder, hint)
  _check_file(path)
  wrong = (ValueError, LookupError, TypeError, AttributeError, OSError)
  try:
    card = parse_metadata(path.read_text(encoding='utf-8'), path)
    version = int(card['format'].removeprefix('mira export '))
    if version <= FORMAT and card[SEAL] != seal(card):
      raise _changed(path)
  except wrong as error:  # a MiraInputError is a ValueError
    raise _changed(path) from error
  if version > FORMAT:
    hint = f'a newer mira_jax wrote it, format {version}; this one has {FORMAT}'
    raise checkpoint_error('too_new', path, hint)
  try:
    _check_fields(card)
  except wrong as error:
    hint = f'its card lacks a field of an export, or has another ({error})'
    raise checkpoint_error('bad_metadata', path, hint) from error
  return check_metadata(card, path)


def _check_fields(card: Card) -> None:
  """Checks the fields that only exports have; raises any error."""
  names = [card['jax_version'], *card['platforms'], *card['files'].values()]
  if card['files'].keys() != {PROGRAM, weights_file.WEIGHTS, GOLDEN}:
    raise ValueError('files')
  if not card['platforms'] or not all(isinstance(name, str) for name in names):
    raise ValueError('jax_version, platforms, files')
  if card['golden']['tolerance'] != TOLERANCES[card['model']['dtype']]:
    raise ValueError('golden.tolerance')


def _check_file(path: pathlib.Path) -> None:
  if not path.is_file():
    raise checkpoint_error('missing', path, 'copy the whole folder again')


def _changed(path: pathlib.Path) -> MiraInputError:
  hint = 'it is not what was written (SHA-256); copy the folder again'
  return checkpoint_error('changed', path, hint)
