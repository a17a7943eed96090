"""predictions.csv: what any program reads, and what ours reads back."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest

from mira_jax.evaluation import metrics, predictions, statistics

NAMES = ('happy', 'sad, or not', 'fear')


def some(clips=40, seed=0):
  rng = np.random.default_rng(seed)
  shares = rng.dirichlet(np.ones(3), clips)
  return predictions.Predictions(
    class_names=NAMES,
    clip=np.array([f'a/{i}, "b".mp4' for i in range(clips)]),
    subject=np.array(['' if i < 3 else f's{i // 5}' for i in range(clips)]),
    fold=np.array([f'fold {i % 2 + 1}' for i in range(clips)]),
    label=rng.integers(3, size=clips),
    probability=shares,
  )


def test_a_table_has_every_clip_and_is_read_back(tmp_path):
  made = some()
  path = made.write(tmp_path)
  with path.open(newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 40
  assert list(rows[0]) == [
    'clip', 'subject', 'fold', 'true', 'predicted',
    'p_happy', 'p_sad, or not', 'p_fear',
  ]  # fmt: skip
  right = np.mean([row['true'] == row['predicted'] for row in rows])
  assert right == pytest.approx(metrics.score(made.matrix).war)
  back = predictions.read(path)
  np.testing.assert_array_equal(back.matrix, made.matrix)
  np.testing.assert_allclose(back.probability, made.probability, atol=1e-8)
  for name in ('clip', 'subject', 'fold', 'label'):
    np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
  joined = predictions.join([made, back])
  np.testing.assert_array_equal(joined.matrix, 2 * made.matrix)


def test_another_table_is_refused(tmp_path):
  path = tmp_path / 'other.csv'
  for text in ('', 'clip,subject\na,b\n', 'clip,subject,fold,true,predicted\n'):
    path.write_text(text)
    with pytest.raises(ValueError, match=r'columns|values'):
      predictions.read(path)


def test_intervals_are_wider_where_clips_of_a_subject_are_alike():
  rng = np.random.default_rng(1)
  right = np.repeat(rng.random(30) < 0.7, 10)  # all clips of a subject or none
  label = np.arange(300) % 3
  made = predictions.Predictions(
    class_names=NAMES,
    clip=np.arange(300).astype(str),
    subject=np.repeat([f's{i}' for i in range(30)], 10),
    fold=np.full(300, ''),
    label=label,
    probability=np.eye(3)[np.where(right, label, (label + 1) % 3)],
  )
  matrices = made.by_subject()
  assert matrices.shape == (30, 3, 3)
  np.testing.assert_array_equal(matrices.sum(0), made.matrix)
  low, high = statistics.intervals(matrices)['war']
  war = right.mean()
  # The standard error of the mean of subjects, by the textbook.
  error = np.sqrt(war * (1 - war) / 30)
  assert low == pytest.approx(war - 1.96 * error, abs=0.03)
  assert high == pytest.approx(war + 1.96 * error, abs=0.03)
  alone = dataclasses.replace(made, subject=np.full(300, ''))
  assert len(alone.by_subject()) == 300
  near, far = statistics.intervals(alone.by_subject())['war']
  assert far - near < 0.5 * (high - low)
