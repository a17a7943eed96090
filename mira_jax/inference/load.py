"""From a path to an engine: runs, weights files, checkpoints of PyTorch."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.inference.engine import Engine
from mira_jax.models.build import build_model
from mira_jax.models.vivit import ViViT
from mira_jax.param_names import single_name, stacked_name
from mira_jax.weights import convert, infer_model, int8, sources
from mira_jax.weights.metadata import unit_thresholds
from mira_jax.weights.warm_start import Transfer, transfer
from mira_jax.weights.weights_file import compact, flatten

PyTree = Any
Path = str | os.PathLike[str]
Card = dict[str, Any]


def read(
  path: Path, overrides: infer_model.Overrides = infer_model.Overrides()
) -> convert.Converted:
  """Reads a run folder, or whatever `sources.read` reads.

  Raises:
    MiraInputError: a run without weights ('not_finished'), or see
      `convert.read`.
  """
  if os.path.isdir(path) and not sources.weights_path(path).is_file():
    raise not_finished(path)
  return convert.read(path, overrides)


def load_engine(
  path: Path, batch_size: int = 8, **options: Any
) -> tuple[Engine, Card]:
  """The engine and the metadata of a classifier, see `read`, `make_engine`."""
  return make_engine(read(path), path, batch_size, **options)


def make_engine(
  found: convert.Converted,
  path: Path,
  batch_size: int = 8,
  *,
  dtype: str | None = None,
  eight_bits: bool = False,
) -> tuple[Engine, Card]:
  """The engine and the metadata of weights that were read.

  It computes in `dtype`, by default the metadata's; with `eight_bits` kernels
  are held as `int8`. `path` is for errors.

  Raises:
    MiraInputError: no classifier ('no_classifier'), or tensors that don't fit
      the model ('bad_weights').
  """
  card = found.metadata
  if not is_classifier(card):
    raise no_classifier(path, card)
  model = build_model(card['model'] | ({'dtype': dtype} if dtype else {}))
  _check_variables(model, found.variables, path)
  variables = int8.quantise(found.variables) if eight_bits else found.variables
  units = unit_thresholds(card) is not None
  return Engine(model, variables, batch_size, units=units), card


def load_backbone(
  path: Path,
  batch_size: int = 8,
  overrides: infer_model.Overrides = infer_model.Overrides(),
  dtype: str | None = None,
) -> tuple[Engine, Card, Transfer]:
  """An engine whose logits are features, of a classifier or a pre-training.

  It computes in `dtype`, by default the metadata's.

  Returns:
    The engine, the metadata, and which tensors were used.

  Raises:
    MiraInputError: see `sources.read`, `infer_model.metadata_of`, `transfer`.
  """
  source = sources.read(path, overrides.key)
  card, remarks = infer_model.metadata_of(source, overrides)
  own = {'num_classes': 0} | ({'dtype': dtype} if dtype else {})
  model = build_model(card['model'] | own)
  fresh = jax.jit(model.init)(jax.random.key(0), jnp.zeros(_video_shape(model)))
  variables, used = transfer(jax.device_get(fresh), source, grid=model.grid)
  used = dataclasses.replace(used, notes=[*used.notes, *remarks])
  return Engine(model, variables, batch_size), card, used


def is_classifier(card: Mapping[str, Any]) -> bool:
  """Whether a model has a head; a pre-training and a backbone have none."""
  return not card.get('pretrain') and bool(card['class_names'])


def check_alone(card: Mapping[str, Any], path: Path) -> None:
  """Raises MiraInputError for a model that reads more than the video."""
  if units := card['model'].get('oracle_units'):
    hint = f'it reads annotated action units ({units}), which a clip alone '
    hint += 'lacks; use mira eval, or train it without model.oracle_units'
    raise checkpoint_error('unsupported', path, hint)


def no_classifier(path: Path, card: Mapping[str, Any]) -> MiraInputError:
  """The error of weights without a head where a classifier is needed."""
  pretraining = card.get('pretrain')
  kind = 'a pre-training' if pretraining else 'a backbone without a head'
  hint = f'it is {kind}; fine-tune it with --config.train.init_from'
  return checkpoint_error('no_classifier', path, hint)


def not_finished(workdir: Path) -> MiraInputError:
  """The error of a folder without weights: an unfinished run, or no run."""
  if (pathlib.Path(workdir) / 'config.json').is_file():
    hint = 'finish the run first, or score it with eval.py --step=newest'
    return checkpoint_error('not_finished', workdir, hint)
  hint = 'no weights lie in this folder; name a run of train.py or a file'
  return checkpoint_error('not_found', workdir, hint)


def _video_shape(model: ViViT) -> tuple[int, ...]:
  return 1, model.frames, model.image_size, model.image_size, 3


def _check_variables(model: ViViT, variables: PyTree, path: Path) -> None:
  """Raises for tensors that are missing, unexpected or misshapen."""
  try:
    want = _expected(model)
  except MiraInputError:  # attention that does not run here
    raise
  except (ValueError, TypeError, ZeroDivisionError) as cause:
    hint = f'it does not describe a model of this version ({cause})'
    raise checkpoint_error('bad_metadata', path, hint) from cause
  have = {name: leaf.shape for name, leaf in flatten(variables).items()}
  wrong = [n for n in sorted(want | have) if want.get(n) != have.get(n)]
  if wrong:
    name = wrong[0]
    hint = (
      f'{len(wrong)} tensors do not fit its model: {compact(wrong)}; '
      f'the first is {have.get(name)} where {want.get(name)} is needed'
    )
    raise checkpoint_error('bad_weights', path, hint)


def _expected(model: ViViT) -> dict[str, tuple[int, ...]]:
  """The shape of every variable of a model, by name.

  One block of the encoder stands for those that are the same: tracing all of
  them takes a fifth of a second, each time that a command starts.
  """
  same = not model.scan and model.mira_last_blocks is None
  traced = model.clone(depth=1) if same else model
  video = jax.ShapeDtypeStruct(_video_shape(model), jnp.float32)
  tree = jax.eval_shape(traced.init, jax.random.key(0), video)
  shapes = {name: leaf.shape for name, leaf in flatten(tree).items()}
  for name, shape in list(shapes.items()) if same else ():
    if '/encoder/block_' in name:
      stacked = stacked_name(name)
      numbers = range(1, model.depth)
      shapes |= dict.fromkeys((single_name(stacked, i) for i in numbers), shape)
  return shapes
