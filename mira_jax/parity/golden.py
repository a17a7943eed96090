"""Runs golden cases: the reference's inputs through this package.

A case is a file NAME.npz with the reference's parameters, inputs, outputs and
gradients, and an entry in `cases.json` with its configuration. Each quantity in
the file is compared with ours; the relative error is the largest difference
over the largest magnitude in the reference.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.errors import MiraInputError
from mira_jax.parity import golden_cases
from mira_jax.parity.golden_cases import Arrays
from mira_jax.parity.golden_training import run_training

# Kind of case -> (case, arrays, dtype, attention) -> name and array of results.
KINDS = {
  'attention': golden_cases.run_attention,
  'finetune': golden_cases.run_classifier,
  'pretrain': golden_cases.run_autoencoder,
  'train_finetune': run_training,
  'train_pretrain': run_training,
}
# Relative error allowed, by the precision of the run and the kind of case.
FLOAT64_BOUND = 1e-12
FLOAT64_TRAINING_BOUND = 1e-10
# With one token per frame the reference adds 5e5 to shares, and rounds them.
ONE_TOKEN_BOUND = 1e-7
FLOAT32_BOUND = 2e-5
FLOAT32_GRADIENT_BOUND = 2e-4
FLOAT32_TRAINING_BOUND = 1e-4


@dataclasses.dataclass(frozen=True)
class Check:
  """One quantity of one case against the reference."""

  case: str
  quantity: str
  max_abs: float
  relative: float
  bound: float

  @property
  def passed(self) -> bool:
    return self.relative <= self.bound


def read_cases(directory: str | pathlib.Path) -> list[dict[str, Any]]:
  """The entries of DIR/cases.json."""
  path = pathlib.Path(directory) / 'cases.json'
  if not path.is_file():
    hint = 'give a directory of golden cases with a cases.json'
    raise MiraInputError('not_found', path, hint)
  try:
    cases = json.loads(path.read_text())
  except ValueError as error:
    raise MiraInputError(
      'bad_case', path, f'it is not JSON: {error}'
    ) from error
  if not cases or not isinstance(cases, list):
    raise MiraInputError('bad_case', path, 'it lists no case')
  return cases


def run_case(
  directory: str | pathlib.Path,
  case: Mapping[str, Any],
  dtype: str = 'float64',
  attention: str = 'reference',
) -> list[Check]:
  """Every quantity of a case, compared.

  Args:
    directory: where NAME.npz lies.
    case: an entry of `read_cases`.
    dtype: 'float64' or 'float32', of parameters and computation.
    attention: its implementation, see `kernels.dispatch`; only 'reference' has
      the maps to compare.
  """
  path = pathlib.Path(directory) / f'{case["name"]}.npz'
  if not path.is_file():
    raise MiraInputError('not_found', path, 'cases.json names it')
  try:
    with np.load(path) as file:
      arrays = dict(file)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise MiraInputError('bad_case', path, f'{error}') from error
  with jax.enable_x64(dtype == 'float64'):
    ours = dict(KINDS[case['kind']](case, arrays, jnp.dtype(dtype), attention))
  uncomputed = _expected(arrays) - ours.keys()
  if attention != 'reference':
    uncomputed = {name for name in uncomputed if '/attn_' not in name}
  if uncomputed:
    hint = f'nothing here computes {", ".join(sorted(uncomputed))}'
    raise MiraInputError('bad_case', path, hint)
  return [
    _compare(case, name, np.asarray(ours[name]), arrays[name], dtype)
    for name in arrays
    if name in ours
  ]


def _expected(arrays: Arrays) -> set[str]:
  """Names in a file that are results, not inputs."""
  inputs = ('x', 'cotangent', 'video_bcthw', 'label', 'mask', 'target')
  step = r'(step\d+/)?'
  given = re.compile(rf'param/.*|{step}({"|".join(inputs)})')
  return {name for name in arrays if not given.fullmatch(name)}


def _compare(
  case: Mapping[str, Any],
  name: str,
  ours: np.ndarray,
  reference: np.ndarray,
  dtype: str,
) -> Check:
  if ours.shape != reference.shape:
    name = f'{name}: {ours.shape}, not {reference.shape}'
    return Check(case['name'], name, np.inf, np.inf, 0.0)
  difference = float(np.max(np.abs(ours - reference), initial=0.0))
  scale = float(np.max(np.abs(reference), initial=0.0))
  relative = difference / scale if scale else difference
  bound = _bound(case, name, dtype)
  return Check(case['name'], name, difference, relative, bound)


def _bound(case: Mapping[str, Any], name: str, dtype: str) -> float:
  training = case['kind'].startswith('train')
  if dtype == 'float32':
    if training:
      return FLOAT32_TRAINING_BOUND
    return FLOAT32_GRADIENT_BOUND if 'grad/' in name else FLOAT32_BOUND
  if case.get('tokens_per_frame') == 1:
    return ONE_TOKEN_BOUND
  return FLOAT64_TRAINING_BOUND if training else FLOAT64_BOUND
