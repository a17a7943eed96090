"""Features in small, as `mira features` writes them."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from mira_jax.evaluation import feature_file


def blobs(seed=0, count=120, classes=3, dim=6, spread=1.0):
  """Features around a centre per class, and labels that alternate."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  centres = 2 * np.eye(classes, dim)
  return centres[labels] + rng.normal(0, spread, (count, dim)), labels


def subjects(count=60, **about) -> feature_file.Features:
  """Features of 6 people with unequal numbers of clips."""
  features, labels = blobs(count=count, spread=1.5)
  starts = np.array([0, 4, 10, 22, 30, 45])
  person = np.searchsorted(starts, np.arange(count), side='right')
  origin = {'dataset': 'd', 'weights_sha256': 'w'} | about
  return {
    'features': features.astype(np.float32),
    'label': labels,
    'clip_id': np.array([f'c{i}' for i in range(count)]),
    'subject': np.array([f's{i}' for i in person]),
    'fold': person % 3,
    'split': np.where(person < 4, 'train', 'test'),
    'class_names': np.array(['a', 'b', 'c']),
    'about': np.array(json.dumps(origin)),
  }


def save(path: pathlib.Path, data: feature_file.Features) -> str:
  rows = {name: data[name] for name in feature_file.ROWS}
  names = tuple(data['class_names'].tolist())
  feature_file.write(path, rows, names, feature_file.about(data))
  return str(path)
