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
from mira_jax.video import footage
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
  if out.exists() and not (force and is_export(out)):
    hint = 'name another folder; --force replaces an export and nothing else'
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
    raise not_written(out, f'results must have room there ({error})') from error
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return difference


def _check_platforms(platforms: Sequence[str]) -> None:
  here = jax_export.default_export_platform()
  if here not in platforms or not {*platforms} <= {*PLATFORMS}:
    hint = f'use some of {", ".join(PLATFORMS)}, and {here}, to verify it here'
    raise MiraInputError('bad_platform', ','.join(platforms), hint)


def _exportable(model: ViViT, dtype: str | None, source: Path) -> ViViT:
  """The model as it is exported: one that every platform computes."""
  if model.mira is not None and model.mira.statistics != 'instance':
    hint = (
      f'mira.statistics is {model.mira.statistics!r}, which reads the other '
      "clips of a batch; export a model with 'instance'"
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
  clips, expected = _golden(model, variables)
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
  model: ViViT, variables: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Synthetic clips [2, T, S, S, 3] and the engine's float32 probabilities."""
  truth = model.clone(attention=None, dtype=jnp.float32)
  reference = engine.Engine(truth, variables, GOLDEN_CLIPS)
  size, count = model.image_size, model.frames
  large = {'size': max(64, size), 'num_frames': max(8, count)}
  drawn = [
    faces.draw_clip(i, seed=0, split='test', difficulty='macro', **large).frames
    for i in range(GOLDEN_CLIPS)
  ]
  first = np.arange(count)[None]
  clips = [footage.resize_windows(x, first, size, 'squash')[0] for x in drawn]
  with _precision(truth):
    return np.stack(clips), reference.probabilities(np.stack(clips))


def _describe(model: ViViT, card: Card, program: jax_export.Exported) -> Card:
  """All of card.json but the digests; docs/export.md explains the fields."""
  dtype = jnp.dtype(model.dtype).name
  size, count = model.image_size, len(card['class_names'])
  video = {'dtype': 'uint8', 'shape': ['b', model.frames, size, size, 3]}
  scores = {'dtype': 'float32', 'shape': ['b', count]}
  return {
    'format': f'mira export {FORMAT}',
    'model': card['model'] | {'dtype': dtype, 'attention': model.attention},
    'class_names': card['class_names'],
    'preprocessing': card['preprocessing']
    | {'frames': model.frames, 'image_size': size},
    'input': {
      'clips': video | {'mean': transforms.MEAN, 'std': transforms.STD},
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
