"""Clips and labels of a prepared dataset that cannot be used."""

from __future__ import annotations

import functools
import itertools
import json

import jax
import pytest

import runs
from mira_jax.data import dataset, pipeline
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import engine
from mira_jax.train import build, datasets


def test_a_label_that_is_no_class_is_refused(tmp_path):
  cfg = runs.tiny(runs.levels(tmp_path, train=6))
  (made,) = datasets.open_datasets(cfg.data)
  index = json.loads((made.directory / dataset.INDEX).read_text())
  index['train']['label'][4] = 2
  (made.directory / dataset.INDEX).write_text(json.dumps(index))
  with pytest.raises(MiraInputError, match='label 2 is none of 0') as caught:
    datasets.open_parts(cfg, [made])
  assert caught.value.code == 'damaged'
  assert caught.value.exit_code == ExitCode.DATA


class Damaged(list):
  """A source of which some clips cannot be read."""

  bad = ()

  def __getitem__(self, index):
    if index in self.bad:
      raise MiraInputError('damaged', f'clip {index}', 'prepare it again')
    return super().__getitem__(index)


@pytest.mark.parametrize(
  ('way', 'clip_count', 'bad', 'share', 'fails'),
  [
    ('train', 200, 2, 0.01, False),
    ('train', 200, 3, 0.01, True),
    ('eval', 200, 3, 0.01, True),
    ('eval', 10, 1, 0.01, False),  # one may always be
    ('train', 10, 1, 0.0, True),  # unless none may
  ],
)
def test_only_a_share_of_clips_may_be_damaged(
  way, clip_count, bad, share, fails
):
  (one,) = runs.clips('test', 1)
  source = Damaged([one] * clip_count)
  source.bad = range(0, 2 * bad, 2) if bad < clip_count // 2 else range(bad)
  read = functools.partial(
    pipeline.eval_batches if way == 'eval' else pipeline.train_batches,
    source, frames=2, rate=1, size=16, batch_size=10, threads=4,
    max_damaged=share,
  )  # fmt: skip
  batches = read() if way == 'eval' else read(seed=0)
  batches = itertools.islice(batches, clip_count // 10)
  if not fails:
    assert len(list(batches)) == clip_count // 10
    return
  with pytest.raises(MiraInputError, match='too_many_damaged') as caught:
    list(batches)
  assert caught.value.exit_code == ExitCode.DATA
  assert f'{bad} of {clip_count} clips' in caught.value.hint


def test_evaluation_counts_damaged_clips(tmp_path):
  test = list(runs.clips('test', 9))
  for clip in test[:2]:
    clip.frames = [b'no jpeg'] * 8
  names, train = ('a', 'b', 'c'), runs.clips('train', 6)
  path = runs.write(tmp_path, 'levels', names, train=train, test=test)
  cfg = runs.tiny(path, model={'num_classes': 3})
  parts = datasets.open_parts(cfg, datasets.open_datasets(cfg.data))
  mesh = sharding.make_mesh()
  made = build.classifier(cfg, mesh)
  scorer = engine.Engine(
    made.model, jax.jit(made.init)(jax.random.key(0)), 8, mesh
  )
  with pytest.raises(MiraInputError, match='2 of 9 clips'):
    datasets.score_source(scorer, parts.test, cfg, views=1)
  cfg.data.max_damaged = 0.5
  found = datasets.score_source(scorer, parts.test, cfg, views=1)
  assert found.clip.tolist() == [f'test-{i}' for i in range(2, 9)]
  assert found.subject.tolist() == [f'test{i // 3}' for i in range(2, 9)]
  assert found.label.tolist() == [i % 3 for i in range(2, 9)]
  assert found.matrix.sum() == 7
