"""Writes a trained model as a program that runs without this package.

The program is StableHLO as `jax.export` stores it: any number of clips, pixels
in, probabilities out. docs/export.md shows how to run it with jax alone;
`exported` runs it here.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax import export as jax_export

from mira_jax import files
from mira_jax.augment import transforms
from mira_jax.errors import MiraInputError, checkpoint_error, not_written
from mira_jax.inference import engine
from mira_jax.inference import load as loading
from mira_jax.inference.exported import (
  CARD,
  FORMAT,
  GOLDEN,
  GOLDEN_CLIPS,
  PROGRAM,
  SEAL,
  TOLERANCES,
  Card,
  Path,
  is_export,
  seal,
  verify,
)
from mira_jax.models.vivit import ViViT
from mira_jax.synthetic import faces
from mira_jax.video import decode
from mira_jax.weights import infer_model, weights_file

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(
  source: Path,
  out: Path,
  *,
  platforms: Sequence[str] = PLATFORMS,
  dtype: str | None = None,
  force: bool = False,
  overrides: infer_model.Overrides = infer_model.Overrides(),
) -> float:
  """Exports a classifier; `out` appears only after it was verified.

  Args:
    source: a run folder, or weights, see `load.read`.
    out: the new folder.
    platforms: of PLATFORMS, this machine's among them.
    dtype: of the computation, a key of TOLERANCES; by default the model's own.
    force: whether to replace an export at `out`.
    overrides: what weights of other programs don't say.

  Returns:
    The largest difference between the export's and the engine's probabilities.

  Raises:
    MiraInputError: `out` exists, an unknown platform or dtype, a pre-training,
      batch statistics, weights that cannot be used, a full disk, or an export
      that does not compute what the engine does.
  """
  out = pathlib.Path(os.path.abspath(out))
  if out.exists() and not force:
    raise MiraInputError('exists', out, 'it is there already; --force')
  if out.exists() and not is_export(out):
    hint = 'it is no export, which --force would replace; name another folder'
    raise MiraInputError('exists', out, hint)
  _check_platforms(platforms)
  found = loading.read(source, overrides)
  made, card = loading.make_engine(found, source)
  model = _exportable(made.model, dtype, source)
  part = out.with_name(out.name + '.part')
  shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
  try:
    files.open_folder(part)
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


def _check_platforms(platforms: Sequence[str]) -> None:
  known = ', '.join(PLATFORMS)
  for name in platforms or ['']:
    if name not in PLATFORMS:
      hint = f'use some of {known}; cuda is for NVIDIA GPUs'
      raise MiraInputError('bad_platform', name or 'no platform', hint)
  here = jax_export.default_export_platform()
  if here not in platforms:
    hint = f'exports are verified here, on {here}; add it, or export elsewhere'
    raise MiraInputError('bad_platform', ','.join(platforms), hint)


def _exportable(model: ViViT, dtype: str | None, source: Path) -> ViViT:
  """The model as it is exported: one that every platform computes."""
  if model.mira is not None and model.mira.statistics != 'instance':
    hint = (
      f'mira.statistics is {model.mira.statistics!r}, so that a clip depends '
      "on the other clips of its batch; export a model with 'instance'"
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
  program = _trace(model, weights_file.flatten(variables), platforms)
  (folder / PROGRAM).write_bytes(program.serialize())
  path, mira = folder / weights_file.WEIGHTS, variables.get('mira', {})
  weights_file.save_weights(path, variables['params'], mira, card)
  clips, expected = _golden(model, variables, card['preprocessing'])
  np.savez_compressed(folder / GOLDEN, clips=clips, probabilities=expected)
  names = (PROGRAM, weights_file.WEIGHTS, GOLDEN)
  digests = {name: files.sha256(folder / name) for name in names}
  card = _describe(model, card, program) | {'files': digests}
  text = json.dumps(card | {SEAL: seal(card)}, indent=2, ensure_ascii=False)
  (folder / CARD).write_text(text + '\n', encoding='utf-8')


def _trace(
  model: ViViT, arrays: Mapping[str, np.ndarray], platforms: Sequence[str]
) -> jax_export.Exported:
  """The program (arrays by name, uint8 [b, T, S, S, 3]) -> scores [b, K]."""

  def score(arrays, video):
    variables = weights_file.unflatten(arrays)
    logits: Any = model.apply(variables, transforms.prepare(video))
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
    hint = 'a program for every platform is traced on the CPU; add cpu'
    raise MiraInputError('no_device', 'JAX_PLATFORMS', hint) from error
  # On the CPU no small attention of a variant chooses a kernel.
  with jax.default_device(host), _precision(model), _without_paths():
    traced = jax_export.export(jax.jit(score), platforms=tuple(platforms))
    return traced(shapes, video)


def _precision(model: ViViT) -> contextlib.AbstractContextManager:
  """Full float32, which GPUs and TPUs round by default."""
  full = model.dtype == jnp.float32
  return jax.default_matmul_precision('highest' if full else 'default')


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
  """Keeps the folders of this machine's source files out of programs."""
  option = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, option)
  jax.config.update(option, 0)
  try:
    yield
  finally:
    jax.config.update(option, before)


def _golden(
  model: ViViT, variables: dict[str, Any], rules: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Synthetic clips [2, T, S, S, 3] and the engine's float32 probabilities."""
  truth = model.clone(attention=None, dtype=jnp.float32)
  reference = engine.Engine(truth, variables, GOLDEN_CLIPS)
  clips = []
  for index in range(GOLDEN_CLIPS):
    face = faces.draw_clip(
      index,
      seed=0,
      split='test',
      difficulty='macro',
      size=max(64, model.image_size),
      num_frames=max(8, model.frames * rules['rate']),
    )
    clip = decode.of_frames('synthetic', list(face.frames), 0)
    cut = {'rate': rules['rate'], 'fit': rules['fit']}
    windows, _ = reference.cut_views(clip, views=1, **cut)
    clips.append(windows[0])
  with _precision(truth):
    return np.stack(clips), reference.probabilities(np.stack(clips))


def _describe(model: ViViT, card: Card, program: jax_export.Exported) -> Card:
  """All of card.json but the digests."""
  dtype = jnp.dtype(model.dtype).name
  size, count = model.image_size, len(card['class_names'])
  scores = {'dtype': 'float32', 'shape': ['b', count]}
  return {
    'format': f'mira export {FORMAT}',
    'model': card['model'] | {'dtype': dtype, 'attention': model.attention},
    'class_names': card['class_names'],
    'preprocessing': card['preprocessing']
    | {'frames': model.frames, 'image_size': size}
    | _rules(model, card['preprocessing']),
    'input': {
      'weights': f'dict of the arrays of {weights_file.WEIGHTS}, by their '
      'names',
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
    'output': {'logits': scores, 'probabilities': scores},
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
  """`Scorer.cut_views` in words, for users who do not have it."""
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
