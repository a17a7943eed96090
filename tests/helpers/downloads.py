"""Lists and prepares the miniatures of downloads."""

from __future__ import annotations

import pathlib

import pytest

import miniatures
from mira_jax.data import dataset
from mira_jax.data.listing import Row
from mira_jax.errors import MiraInputError
from mira_jax.prepare import builders, prepare
from mira_jax.prepare.builders import BUILDERS, Tree


def make(root: pathlib.Path, *names: str) -> pathlib.Path:
  """Makes miniatures, each in a folder of its name beside its count."""
  for name in names:
    count = miniatures.DATASETS[name](root / name)
    (root / f'{name}.count').write_text(str(count))
  return root


def list_clips(name: str, root: pathlib.Path, **options) -> builders.Clips:
  """The clips of a miniature."""
  builder = BUILDERS[name]
  chosen = {key: values[0] for key, values in builder.options.items()}
  return builder.list_clips(Tree(root, builder.layout), chosen | options)


def rows_of(name: str, root: pathlib.Path, **options) -> dict[str, Row]:
  """The clips of a miniature, all of which exist, by clip_id."""
  rows = list_clips(name, root, **options).rows
  assert all(pathlib.Path(row.path).exists() for row in rows)
  return {row.clip_id: row for row in rows}


def prepare_small(name: str, root: pathlib.Path, out: pathlib.Path, **options):
  """The report and the dataset of a miniature."""
  settings = {'workers': 0} | options
  report = prepare.prepare_dataset(name, root, out, **settings)
  return report, dataset.open(out)


def error_of(call, *args, **options) -> MiraInputError:
  """The error of a call."""
  with pytest.raises(MiraInputError) as caught:
    call(*args, **options)
  return caught.value
