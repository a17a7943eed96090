"""Reads and runs exports: programs in a folder, see `export`.

An export may come from anyone: its files are checked against the digests in
its card, and its program before it is compiled, see `untrusted`.
"""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from mira_jax import files
from mira_jax.devices import hardware
from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.inference import runtimes, scorer, untrusted
from mira_jax.models.build import build_model
from mira_jax.weights.metadata import check_metadata, parse_metadata

Card = dict[str, Any]
Path = str | os.PathLike[str]

# In the folder of an export, beside the files of its program.
GOLDEN = 'golden.npz'
CARD = 'card.json'
FORMAT = 2  # 1 had StableHLO alone, and is still written for it
SEAL = 'card_sha256'

# The largest difference from the engine's float32 probabilities. Bfloat16 has
# 8 bits; a logit that is 0.1 off moves a probability by at most 0.025.
TOLERANCES = {'float32': 1e-5, 'bfloat16': 0.03}
INT8_TOLERANCE = 0.1
GOLDEN_CLIPS = 2


class Exported(scorer.Scorer):
  """An export that was read; scores clips as an `engine.Engine` does.

  Attributes:
    card: the metadata in card.json.
    seconds: that a call may take before the process ends; None is any time.
  """

  def __init__(
    self,
    run: runtimes.Run,
    card: Card,
    batch_size: int,
    folder: pathlib.Path,
    seconds: float | None,
  ):
    self.run, self.card, self.seconds = run, card, seconds
    self.frames = card['model']['frames']
    self.image_size = card['model']['image_size']
    self.batch_size = batch_size
    most = batch_size
    if card['platforms'] == ['cpu']:
      most = scorer.most_at_once(build_model(card['model']), batch_size)
    self.buckets = scorer.bucket_sizes(1, most)
    self._folder = folder

  def _scores(self, windows: np.ndarray) -> dict[str, np.ndarray]:
    path = self._folder / _files(self.card)[0]
    try:
      with untrusted.time_limit(self.seconds, path):
        found = self.run(windows)
        if absent := [n for n in _outputs(self.card) if n not in found]:
          raise ValueError(f'it has no output {absent[0]}')
        scores = {name: np.asarray(found[name]) for name in _outputs(self.card)}
    except Exception as error:  # a foreign program may fail in any way
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        raise
      raise untrusted.bad_program(path, error) from error
    shape = (len(windows), _width(self.card))
    for array in scores.values():
      if (array.shape, array.dtype) != (shape, np.float32):
        raise untrusted.bad_program(path, f'it gives {array.shape}')
      if not np.isfinite(array).all():
        hint = 'its probabilities are NaN or infinite; export the model again'
        raise checkpoint_error('not_finite', path, hint)
    return scores


def _files(card: Card) -> tuple[str, ...]:
  """The files of an export's program."""
  return runtimes.KINDS[card.get('kind', 'jax')].files


def _outputs(card: Card) -> tuple[str, ...]:
  """The outputs of a program; logits of a backbone are features."""
  return ('logits', 'probabilities') if card['class_names'] else ('logits',)


def _width(card: Card) -> int:
  """The length of a clip's logits."""
  return len(card['class_names']) or card['model']['dim']


def is_export(path: Path) -> bool:
  """Whether a folder is an export, or was one before it was damaged."""
  # Others keep a model.onnx or a model.xml beside their weights, too.
  names = (CARD, GOLDEN, runtimes.STABLEHLO)
  return any(os.path.isfile(os.path.join(path, name)) for name in names)


def seal(card: Card) -> str:
  """A digest of a card without its own field."""
  rest = {name: x for name, x in card.items() if name != SEAL}
  return files.json_sha256(rest)


def load(
  folder: Path,
  batch_size: int = 8,
  seconds: float | None = None,
  backend: str | None = None,
) -> Exported:
  """Reads an export, after checking every digest.

  At most `batch_size` clips are one call. `seconds`, for commands, which own
  their process, limit that call, as in `Exported`, and opening the program.
  `backend` is one of `runtimes.BACKENDS` that runs such a program, by default
  the usual one.

  Raises:
    MiraInputError: no export, a file that is missing or changed, one of
      another version or for other devices, or see `runtimes.open_program`.
  """
  folder = pathlib.Path(folder)
  card = _read_card(folder)
  for name, expected in card['files'].items():
    _check_file(folder / name)
    if files.sha256(folder / name) != expected:
      raise _changed(folder / name)
  with untrusted.time_limit(seconds, folder / _files(card)[0]):
    run = runtimes.open_program(folder, card, backend)
  return Exported(run, card, batch_size, folder, seconds)


def verify(
  folder: Path, seconds: float | None = None, backend: str | None = None
) -> float:
  """Runs the golden pair, one clip and both at once.

  Returns:
    The largest difference between probabilities (of a backbone, between
    features, in units of the largest one).

  Raises:
    MiraInputError: see `load`; or a difference over the tolerance ('differs').
  """
  exported = load(folder, GOLDEN_CLIPS, seconds, backend)
  card, path = exported.card, pathlib.Path(folder) / GOLDEN
  clips, expected = _read_golden(path, card)
  score = exported.probabilities if card['class_names'] else exported.logits
  alone = scorer.is_independent(build_model(card['model']))
  counts = (1, GOLDEN_CLIPS) if alone else (GOLDEN_CLIPS,)
  found = [score(clips[:n]) for n in counts]
  differences = [np.abs(x - expected[: len(x)]).max() for x in found]
  largest = float(np.max(differences))  # NaN, if there is one
  if not card['class_names']:
    largest /= max(1.0, float(np.abs(expected).max()))
  allowed = card['golden']['tolerance']
  if not largest <= allowed:
    by_jax = card.get('kind', 'jax') == 'jax'
    here = jax.devices()[0].device_kind if by_jax else hardware.processor()
    hint = f'{GOLDEN} differs by {largest:.1e} on {here}, over {allowed:.0e}'
    program = pathlib.Path(folder) / _files(card)[0]
    raise checkpoint_error('differs', program, hint)
  return largest


def _read_golden(
  path: pathlib.Path, card: Card
) -> tuple[np.ndarray, np.ndarray]:
  """Clips and what the engine made of them.

  Sizes are checked before memory is taken.
  """
  size = card['model']['image_size']
  clips = (GOLDEN_CLIPS, card['model']['frames'], size, size, 3)
  scores = (GOLDEN_CLIPS, _width(card))
  most = 2**16 + math.prod(clips) + 8 * math.prod(scores)
  try:
    with zipfile.ZipFile(path) as archive:
      if sum(member.file_size for member in archive.infolist()) > most:
        raise ValueError('it unpacks to more than two clips')
    with np.load(path) as golden:
      found, expected = golden['clips'], golden[_outputs(card)[-1]]
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
  if card.get('kind', 'jax') not in runtimes.KINDS:
    raise ValueError('kind')
  if card['files'].keys() != {*_files(card), GOLDEN}:
    raise ValueError('files')
  if not card['platforms'] or not all(isinstance(name, str) for name in names):
    raise ValueError('jax_version, platforms, files')
  if card['golden']['tolerance'] != tolerance(card):
    raise ValueError('golden.tolerance')


def tolerance(card: Card) -> float:
  """The largest difference from the engine that an export may have."""
  if card.get('kind') == 'openvino' and 'int8' in card:
    return INT8_TOLERANCE
  return TOLERANCES[card['model']['dtype']]


def _check_file(path: pathlib.Path) -> None:
  if not path.is_file():
    raise checkpoint_error('missing', path, 'copy the whole folder again')


def _changed(path: pathlib.Path) -> MiraInputError:
  hint = 'it is not what was written (SHA-256); copy the folder again'
  return checkpoint_error('changed', path, hint)
