"""A trained model as a program in a folder, which runs without this package.

`write` makes the folder, `load` runs what is in it, `verify` tries it out. The
program is StableHLO as `jax.export` stores it: any number of clips, pixels in,
probabilities out. docs/export.md shows how to run it with jax alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax import export as jax_export

from mira_jax import output
from mira_jax.augment import transforms
from mira_jax.errors import MiraInputError, checkpoint_error, not_written
from mira_jax.inference import engine, untrusted
from mira_jax.models.vivit import ViViT
from mira_jax.synthetic import faces
from mira_jax.weights import convert, infer_model, sources, weights_file
from mira_jax.weights.metadata import check_card, parse_card

Card = dict[str, Any]

# In the folder of an export, beside weights.WEIGHTS.
PROGRAM = 'program.jax_export'
GOLDEN = 'golden.npz'
CARD = 'card.json'
FORMAT = 1
SEAL = 'card_sha256'

PLATFORMS = ('cpu', 'cuda', 'tpu')
# How far probabilities may be from those of the engine in float32. Bfloat16 has
# 8 bits; a logit that is 0.1 off moves a probability by 0.025 at most.
TOLERANCES = {'float32': 1e-5, 'bfloat16': 0.03}
GOLDEN_CLIPS = 2


class Exported(engine.Scorer):
  """An export that was read; it scores clips as an `engine.Engine` does.

  Attributes:
    card: what card.json says, such as 'class_names' and 'preprocessing'.
    seconds: that a call may take; then the process ends. None is any time.
    frames: T of the clips that it takes.
    image_size: S of them, in pixels.
    program: as jax sees it.
    batch_size: clips per call, at most.
  """

  def __init__(
    self,
    program: jax_export.Exported,
    arrays: Mapping[str, np.ndarray],
    card: Card,
    batch_size: int = 8,
    *,
    folder: str | os.PathLike[str] = '',
    seconds: float | None = None,
  ):
    self._file = pathlib.Path(folder) / PROGRAM
    self.seconds = seconds
    self.program = program
    self.card = card
    self.frames = card['model']['frames']
    self.image_size = card['model']['image_size']
    self.batch_size = batch_size
    self.buckets = engine.doubled(1, batch_size)
    self._arrays = jax.device_put(dict(arrays))
    self._call = jax.jit(program.call)

  def _score_bucket(self, video: np.ndarray) -> np.ndarray:
    try:
      with untrusted.time_limit(self.seconds, self._file):
        scores = np.asarray(self._call(self._arrays, video)['probabilities'])
    # It is somebody else's program, which may fail in any way.
    except Exception as error:
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        raise
      raise untrusted.bad_program(self._file, error) from error
    if not np.isfinite(scores).all():
      hint = 'its probabilities are NaN or infinite; export the model again'
      raise checkpoint_error('not_finite', self._file, hint)
    return scores


# ----- writing ----------------------------------------------------------------


def write(
  source: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  platforms: Sequence[str] = PLATFORMS,
  dtype: str | None = None,
  force: bool = False,
  wishes: infer_model.Wishes = infer_model.Wishes(),
) -> float:
  """Exports a classifier; `out` is there when it was tried out, or not at all.

  Args:
    source: folder of a finished run, or weights as `interop.convert` reads
      them.
    out: the new folder.
    platforms: where the program shall run, of PLATFORMS; this machine's must
      be one of them.
    dtype: of the computation, a key of TOLERANCES; the model's own by default.
    force: whether an export at `out` is replaced.
    wishes: what weights of other programs do not say.

  Returns:
    The largest difference between probabilities of the engine and of the files.

  Raises:
    MiraInputError: `out` exists, platforms or dtype that there are not, a
      pre-training, batch statistics, weights that cannot be used
      (`interop.convert.read`), no room, or files that do not compute what the
      engine does.
  """
  out = pathlib.Path(os.path.abspath(out))
  _check_out(out, force)
  _check_platforms(platforms)
  found = _read(source, wishes)
  scorer, card = engine.load(found, source)
  model = _exportable(scorer.model, card, dtype, source)
  part = out.with_name(out.name + '.part')
  shutil.rmtree(part, ignore_errors=True)  # what a killed export left
  try:
    output.open_folder(part)
    _write_files(part, model, found.variables, card, platforms)
    difference = verify(part)
    if out.exists():
      shutil.rmtree(out)
    part.rename(out)
  except (OSError, safetensors.SafetensorError) as error:
    hint = f'results must have room there ({error})'
    raise not_written(out, hint) from error
  except MiraInputError as error:
    if error.code != 'not_written':
      raise
    raise not_written(out, error.hint) from error
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return difference


def _read(
  source: str | os.PathLike[str], wishes: infer_model.Wishes
) -> convert.Converted:
  if os.path.isdir(source) and not sources.weights_path(source).is_file():
    raise engine.not_finished(source)
  return convert.read(source, wishes)


def is_export(path: str | os.PathLike[str]) -> bool:
  """Whether a folder is an export, or was one before it was damaged."""
  names = (CARD, PROGRAM, GOLDEN)
  return any(os.path.isfile(os.path.join(path, name)) for name in names)


def _check_out(out: pathlib.Path, force: bool) -> None:
  if out.exists() and not force:
    raise MiraInputError('exists', out, 'it is there already; --force')
  if out.exists() and not is_export(out):
    hint = 'it is no export, which --force would replace; name another folder'
    raise MiraInputError('exists', out, hint)


def _check_platforms(platforms: Sequence[str]) -> None:
  known = ', '.join(PLATFORMS)
  for name in platforms or ['']:
    if name not in PLATFORMS:
      hint = f'use some of {known}; cuda is what NVIDIA GPUs are called'
      raise MiraInputError('bad_platform', name or 'no platform', hint)
  here = jax_export.default_export_platform()
  if here not in platforms:
    hint = f'exports are tried out here, on {here}; add it, or export elsewhere'
    raise MiraInputError('bad_platform', ','.join(platforms), hint)


def _exportable(
  model: ViViT,
  card: Card,
  dtype: str | None,
  source: str | os.PathLike[str],
) -> ViViT:
  """The model as it is exported: one that every platform computes."""
  if not card['class_names']:
    raise engine.no_classifier(source)
  if model.mira is not None and model.mira.statistics != 'instance':
    hint = (
      f'mira.statistics is {model.mira.statistics!r}: what it says of a clip '
      "depends on the others of the batch; export one with 'instance'"
    )
    raise checkpoint_error('batch_statistics', source, hint)
  dtype = dtype or jnp.dtype(model.dtype).name
  if dtype not in TOLERANCES:
    hint = f'use --dtype, one of {", ".join(TOLERANCES)}'
    raise MiraInputError('bad_dtype', dtype, hint)
  # In plain XLA, without maps: no kernel is the same on every platform.
  return model.clone(attention='streaming', dtype=jnp.dtype(dtype))


def _write_files(
  folder: pathlib.Path,
  model: ViViT,
  variables: dict[str, Any],
  card: Card,
  platforms: Sequence[str],
) -> None:
  arrays = weights_file.flatten(variables)
  program = _trace(model, arrays, platforms)
  (folder / PROGRAM).write_bytes(program.serialize())
  weights_file.save_weights(
    folder / weights_file.WEIGHTS,
    variables['params'],
    variables.get('mira', {}),
    card,
  )
  clips, expected = _golden(model, variables, card['preprocessing'])
  np.savez_compressed(folder / GOLDEN, clips=clips, probabilities=expected)
  files = {
    name: _digest(folder / name)
    for name in (PROGRAM, weights_file.WEIGHTS, GOLDEN)
  }
  told = _describe(model, card, program) | {'files': files}
  text = json.dumps(told | {SEAL: _seal(told)}, indent=2, ensure_ascii=False)
  (folder / CARD).write_text(text + '\n', encoding='utf-8')


def _trace(
  model: ViViT, arrays: Mapping[str, np.ndarray], platforms: Sequence[str]
) -> jax_export.Exported:
  """The program (arrays by name, uint8 [b, T, S, S, 3]) -> scores [b, K]."""

  def score(arrays, video):
    variables = weights_file.unflatten(arrays)
    logits = model.apply(variables, transforms.prepare(video))
    return {'logits': logits, 'probabilities': jax.nn.softmax(logits)}

  (batch,) = jax_export.symbolic_shape('b')
  side = model.image_size
  video = jax.ShapeDtypeStruct((batch, model.frames, side, side, 3), jnp.uint8)
  shapes = {
    n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in arrays.items()
  }
  try:
    host = jax.devices('cpu')[0]
  except RuntimeError as error:
    hint = 'a program for every platform is traced there; add cpu'
    raise MiraInputError('no_device', 'JAX_PLATFORMS', hint) from error
  # On the CPU no small attention of a variant chooses a kernel.
  with jax.default_device(host), _precision(model):
    return jax_export.export(jax.jit(score), platforms=tuple(platforms))(
      shapes, video
    )


def _precision(model: ViViT) -> contextlib.AbstractContextManager:
  """Float32 that is float32 on GPUs and TPUs too, which by default round."""
  full = model.dtype == jnp.float32
  return jax.default_matmul_precision('highest' if full else 'default')


def _golden(
  model: ViViT, variables: dict[str, Any], rules: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Drawn clips [2, T, S, S, 3] and what the engine, in float32, says."""
  truth = model.clone(attention=None, dtype=jnp.float32)
  scorer = engine.Engine(truth, variables, GOLDEN_CLIPS)
  clips = []
  for index in range(GOLDEN_CLIPS):
    drawn = faces.draw_clip(
      index,
      seed=0,
      split='test',
      difficulty='macro',
      size=max(64, model.image_size),
      num_frames=max(8, model.frames * rules['rate']),
    )
    cut, _ = scorer.cut_views(
      drawn.frames, rate=rules['rate'], views=1, fit=rules['fit']
    )
    clips.append(cut[0])
  with _precision(truth):
    return np.stack(clips), scorer.probabilities(np.stack(clips))


# ----- the card ---------------------------------------------------------------


def _describe(model: ViViT, card: Card, program: jax_export.Exported) -> Card:
  """All of card.json but the digests."""
  dtype = jnp.dtype(model.dtype).name
  size, count = model.image_size, len(card['class_names'])
  return {
    'format': f'mira export {FORMAT}',
    'model': card['model'] | {'dtype': dtype, 'attention': model.attention},
    'class_names': card['class_names'],
    'preprocessing': card['preprocessing']
    | {'frames': model.frames, 'image_size': size}
    | _rules(model, card['preprocessing']),
    'input': {
      'weights': f'dict of the arrays of {weights_file.WEIGHTS}, by name',
      'clips': {
        'dtype': 'uint8',
        'shape': ['b', model.frames, size, size, 3],
        'axes': 'clip, frame in time, row from the top, column from the left, '
        'red green blue',
        'range': [0, 255],
        'normalisation': 'in the program: (x / 255 - mean) / std',
        'mean': transforms.MEAN,
        'std': transforms.STD,
      },
    },
    'output': {
      'logits': {'dtype': 'float32', 'shape': ['b', count]},
      'probabilities': {'dtype': 'float32', 'shape': ['b', count]},
    },
    'golden': {
      'clips': GOLDEN_CLIPS,
      'tolerance': TOLERANCES[dtype],
      'computed_on': jax.devices()[0].device_kind,
    },
    'platforms': list(program.platforms),
    'jax_version': jax.__version__,
    'calling_convention_version': program.calling_convention_version,
  }


def _rules(model: ViViT, rules: Mapping[str, Any]) -> dict[str, str]:
  """What `Engine.cut_views` does, for people who do not have it."""
  frames, size, rate = model.frames, model.image_size, rules['rate']
  span, last = frames * rate, max(1, frames - 1)
  shape = {
    'crop': 'Cut out the middle square of side n = min(H, W), from row '
    '(H - n) // 2 and column (W - n) // 2.',
    'squash': 'Take the whole frame; its aspect is not kept.',
  }[rules['fit']]
  return {
    'sampling': f'Of the F frames of a clip, whatever its frame rate, take '
    f'{frames}, {rate} apart: start, start + {rate}, ... with start = '
    f'round(F / 2 - {span / 2}), not below 0 nor above F - {span}; halves are '
    f'rounded to even. If F < {span}, take round(i (F - 1) / {last}) for i = 0 '
    f'... {frames - 1}; if F < {frames}, all frames, and the last one again. '
    f'Of V windows, number i of 0 ... V - 1 has start = '
    f'round((i + 0.5) F / V - {span / 2}); average their probabilities.',
    'resize': f'{shape} Scale it to {size} x {size} pixels: by the mean over '
    'areas (OpenCV INTER_AREA) if neither side grows, else bilinearly '
    '(INTER_LINEAR). Values stay uint8, RGB.',
  }


def _seal(card: Card) -> str:
  """A digest of all that a card says, but for this digest."""
  told = {name: x for name, x in card.items() if name != SEAL}
  text = json.dumps(told, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


# ----- reading ----------------------------------------------------------------


def load(
  folder: str | os.PathLike[str],
  batch_size: int = 8,
  seconds: float | None = None,
) -> Exported:
  """Reads an export, after checking every digest.

  Args:
    folder: that `write` made.
    batch_size: clips per call, at most; fewer are padded to a power of two.
    seconds: see `Exported`; for commands, whose process is their own.

  Raises:
    MiraInputError: it is no export, a file is missing or changed, another
      version of jax or of this package is needed, it was exported for other
      devices than those that are here, or its program would do more than
      compute ('unsafe_program').
  """
  folder = pathlib.Path(folder)
  card = _read_card(folder)
  for name, expected in card['files'].items():
    if not (folder / name).is_file():
      raise _missing(folder / name)
    if _digest(folder / name) != expected:
      raise _changed(folder / name)
  here = jax_export.default_export_platform()
  if here not in card['platforms']:
    hint = f'it is for {", ".join(card["platforms"])}, and jax runs on {here}'
    raise checkpoint_error('other_platform', folder, hint)
  try:
    program = jax_export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
  # The file is as it was written, so that this jax is too old or too new. What
  # it then says may be anything: it reads fields at other places.
  except Exception as error:
    hint = (
      f'jax {card["jax_version"]} wrote it, which jax {jax.__version__} cannot '
      f'read ({error})'
    )
    raise checkpoint_error('other_jax', folder / PROGRAM, hint) from error
  variables, _ = weights_file.load_weights(folder / weights_file.WEIGHTS)
  arrays = weights_file.flatten(variables)
  untrusted.check(program, folder / PROGRAM)
  _check_signature(program, arrays, card, folder / PROGRAM)
  return Exported(
    program, arrays, card, batch_size, folder=folder, seconds=seconds
  )


def _check_signature(
  program: jax_export.Exported,
  arrays: Mapping[str, np.ndarray],
  card: Card,
  path: pathlib.Path,
) -> None:
  """That a program takes the weights and clips of its card, and scores them."""
  size = card['model']['image_size']
  video = (card['model']['frames'], size, size, 3)
  leaves, tree = jax.tree.flatten(((dict(arrays), 0), {}))
  found = [(x.shape, x.dtype) for x in program.in_avals[:-1]]
  last = program.in_avals[-1] if program.in_avals else None
  scores = {'logits': 0, 'probabilities': 0}
  classes = len(card['class_names'])
  fits = (
    program.in_tree == tree
    and found == [(x.shape, x.dtype) for x in leaves[:-1]]
    and last.dtype == np.uint8
    and last.shape[1:] == video
    and program.out_tree == jax.tree.structure(scores)
    and all(x.shape[1:] == (classes,) for x in program.out_avals)
    and all(x.dtype == np.float32 for x in program.out_avals)
  )
  if not fits:
    hint = f'it does not take the weights and clips of {CARD}; export it again'
    raise checkpoint_error('bad_program', path, hint)


def verify(
  folder: str | os.PathLike[str], seconds: float | None = None
) -> float:
  """Runs the golden pair: one clip, and all of them at once.

  Args:
    folder: that `write` made.
    seconds: see `load`.

  Returns:
    The largest difference between probabilities.

  Raises:
    MiraInputError: see `load`; or probabilities differ by more than the card's
      tolerance ('differs').
  """
  exported = load(folder, GOLDEN_CLIPS, seconds)
  clips, expected = _read_golden(pathlib.Path(folder) / GOLDEN, exported.card)
  found = [exported.probabilities(clips[:n]) for n in (1, len(clips))]
  differences = [np.abs(x - expected[: len(x)]).max() for x in found]
  largest = float(np.max(differences))  # NaN, if there is one
  allowed = exported.card['golden']['tolerance']
  if not largest <= allowed:
    hint = (
      f'its probabilities of {GOLDEN} differ by {largest:.1e} on '
      f'{jax.devices()[0].device_kind}, {allowed:.0e} is allowed'
    )
    raise checkpoint_error('differs', pathlib.Path(folder) / PROGRAM, hint)
  return largest


def _read_golden(
  path: pathlib.Path, card: Card
) -> tuple[np.ndarray, np.ndarray]:
  """Clips and their probabilities; sizes are checked before memory is taken."""
  size = card['model']['image_size']
  shapes = {
    'clips': (GOLDEN_CLIPS, card['model']['frames'], size, size, 3),
    'probabilities': (GOLDEN_CLIPS, len(card['class_names'])),
  }
  most = (
    2**16 + math.prod(shapes['clips']) + 8 * math.prod(shapes['probabilities'])
  )
  try:
    with zipfile.ZipFile(path) as archive:
      if sum(member.file_size for member in archive.infolist()) > most:
        raise ValueError('it unpacks to more than two clips')
    with np.load(path) as golden:
      found = {name: golden[name] for name in shapes}
    types = [found['clips'].dtype, found['probabilities'].dtype]
    if types != [np.uint8, np.float32] or shapes != {
      name: x.shape for name, x in found.items()
    }:
      raise ValueError(f'it is not as {CARD} says')
  except (
    OSError,
    ValueError,
    LookupError,
    zipfile.BadZipFile,
    EOFError,
  ) as error:
    hint = f'it does not hold the golden pair ({error}); export it again'
    raise checkpoint_error('damaged', path, hint) from error
  return found['clips'], found['probabilities']


def _read_card(folder: pathlib.Path) -> Card:
  """The card of an export that this version can run."""
  path = folder / CARD
  if not is_export(folder):
    hint = f'name a folder that mira export made; there is no {CARD}'
    raise checkpoint_error('not_an_export', folder, hint)
  if not path.is_file():
    raise _missing(path)
  try:
    card = parse_card(path.read_text(encoding='utf-8'), path)
    version = int(card['format'].removeprefix('mira export '))
    same = card[SEAL] == _seal(card)
  except (*_NOT_A_CARD, MiraInputError) as error:
    raise _changed(path) from error
  if version > FORMAT:
    hint = f'a newer mira_jax wrote it, format {version}; this one has {FORMAT}'
    raise checkpoint_error('too_new', path, hint)
  try:
    _check_fields(card)
  except _NOT_A_CARD as error:
    if not same:
      raise _changed(path) from error
    hint = f'its card lacks what mira export writes, or says more ({error})'
    raise checkpoint_error('bad_card', path, hint) from error
  _check_convention(card, path)
  if not same:
    raise _changed(path)
  return check_card(card, path)


_NOT_A_CARD = (ValueError, LookupError, TypeError, AttributeError, OSError)


def _check_fields(card: Card) -> None:
  """What `check_card` does not know of an export; raises one of _NOT_A_CARD."""
  files = {PROGRAM, weights_file.WEIGHTS, GOLDEN}
  names = [card['jax_version'], *card['platforms'], *card['files'].values()]
  if card['files'].keys() != files or not card['platforms']:
    raise ValueError('files, platforms')
  if not all(isinstance(name, str) for name in names):
    raise ValueError('jax_version, platforms, files')
  if type(card['calling_convention_version']) is not int:
    raise ValueError('calling_convention_version')
  if card['golden']['tolerance'] != TOLERANCES[card['model']['dtype']]:
    raise ValueError('golden.tolerance')


def _check_convention(card: Card, path: pathlib.Path) -> None:
  convention = card['calling_convention_version']
  oldest = jax_export.minimum_supported_calling_convention_version
  newest = jax_export.maximum_supported_calling_convention_version
  if not oldest <= convention <= newest:
    new = convention > newest
    hint = (
      f'calling convention {convention} of jax {card["jax_version"]}; jax '
      f'{jax.__version__} knows {oldest} to {newest}: install '
      f'{"a newer" if new else "an older"} one, or export anew'
    )
    raise checkpoint_error('too_new' if new else 'too_old', path, hint)


def _missing(path: pathlib.Path) -> MiraInputError:
  return checkpoint_error('missing', path, 'copy the whole folder again')


def _changed(path: pathlib.Path) -> MiraInputError:
  hint = 'it is not what was written (SHA-256); copy the folder again'
  return checkpoint_error('changed', path, hint)
