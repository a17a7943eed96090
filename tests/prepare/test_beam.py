"""Beam writes the same as `dataset.write`, and resumes."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mira_jax.data import dataset, records
from mira_jax.errors import MiraInputError
from mira_jax.prepare import beam
from mira_jax.prepare.resolve import Failure
from mira_jax.video import images

JOBS = {'train': range(40), 'test': range(100, 103)}
BAD = {0, 17, *range(24, 32)}  # the fourth of five shards has no clip at all
CLASSES = ['a', 'b', 'c']
FRAME = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


def _work(job: int, log: str = ''):
  """Even jobs have flags; `log` is a folder with the names of jobs that ran."""
  if log:
    pathlib.Path(log, str(job)).touch()
  if job in BAD:
    return Failure(path=f'{job}.mp4', code='unreadable', hint='é')
  clip = dataset.Clip(
    clip_id=f'{job}.mp4 é',
    frames=[images.encode_jpeg(FRAME + job + j) for j in range(1 + job % 3)],
    label=job % 2,
    subject=f's{job}',
    fps=12.5,
    fold=job % 5,
  )
  return clip, () if job % 2 else ('truncated: 3 of 4', 'rotated')


def _write(out: pathlib.Path, work=_work, **changes) -> beam.Written:
  settings = dict(
    name='toy',
    class_names=CLASSES,
    splits=JOBS,
    description='Toy clips.',
    metadata={'size': 16},
    jobs_per_shard=8,
  )
  return beam.write(out, work=work, **settings | changes)


def _clips(jobs):
  return [_work(job)[0] for job in jobs if job not in BAD]


def _raw(folder: pathlib.Path, split: str) -> list[bytes]:
  source = tfds.builder_from_directory(folder).as_data_source(
    split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
  )
  return [source[i] for i in range(len(source))]


def _info(folder: pathlib.Path) -> dict:
  """What TFDS keeps, without what depends on the number of files."""
  info = json.loads((folder / 'dataset_info.json').read_text())
  for split in info['splits']:
    split.pop('filepathTemplate')
    split['shardLengths'] = sum(map(int, split['shardLengths']))
  return info


@pytest.fixture(autouse=True)
def _needs_beam(request):
  if 'without_beam' not in request.node.name:
    pytest.importorskip('apache_beam')


@pytest.fixture(scope='module')
def plain(tmp_path_factory) -> pathlib.Path:
  """The same clips by `dataset.write`."""
  return dataset.write(
    tmp_path_factory.mktemp('plain'),
    name='toy',
    class_names=CLASSES,
    splits={key: functools.partial(_clips, jobs) for key, jobs in JOBS.items()},
    description='Toy clips.',
    metadata={'size': 16},
  )


def test_beam_writes_the_same_as_dataset_write(tmp_path, plain):
  written = _write(tmp_path)
  folder = written.folder
  assert folder == tmp_path / 'toy' / records.VERSION
  opened = dataset.open(tmp_path)
  assert opened.splits == {'train': 30, 'test': 3}
  for split, jobs in JOBS.items():
    assert list(opened.source(split)) == _clips(jobs)
    assert _raw(folder, split) == _raw(plain, split)
  for name in ('features.json', 'metadata.json', dataset.INDEX):
    assert (folder / name).read_text() == (plain / name).read_text()
  assert _info(folder) == _info(plain)
  # Files are numbered without gaps, and nothing else is left.
  train = [f'toy-train.array_record-0000{i}-of-00004' for i in range(4)]
  found = sorted(p.name for p in folder.glob('*array_record*'))
  assert found == ['toy-test.array_record-00000-of-00001', *train]
  assert len([*folder.iterdir()]) == len(found) + 5
  assert [p.name for p in folder.parent.iterdir()] == [records.VERSION]
  # Failures, counts and flags are returned.
  assert [f.path for f in written.failures] == [f'{i}.mp4' for i in sorted(BAD)]
  assert written.failures[0] == _work(0)
  assert written.counts == {
    'train': {'a': 15, 'b': 15, 'c': 0},
    'test': {'a': 2, 'b': 1, 'c': 0},
  }
  assert written.flags == {'truncated': 17, 'rotated': 17}


def _stopped(out: pathlib.Path, monkeypatch) -> pathlib.Path:
  """All shards, but no dataset of them yet."""
  with monkeypatch.context() as patch:
    patch.setattr(beam, '_publish', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      _write(out)
  with pytest.raises(MiraInputError, match='not_a_dataset'):
    dataset.open(out)
  return out / 'toy' / f'incomplete.{records.VERSION}'


def _log(folder: pathlib.Path) -> tuple[functools.partial, pathlib.Path]:
  folder.mkdir()
  return functools.partial(_work, log=str(folder)), folder


def _ran(log: pathlib.Path) -> list[int]:
  return sorted(int(path.name) for path in log.iterdir())


@pytest.mark.parametrize('damage', [os.remove, lambda p: os.truncate(p, 9)])
def test_only_a_missing_or_damaged_shard_is_done_again(
  tmp_path, plain, monkeypatch, damage
):
  records = _stopped(tmp_path / 'out', monkeypatch)
  damage(records / '2.shard')
  work, log = _log(tmp_path / 'log')
  written = _write(tmp_path / 'out', work)
  assert _ran(log) == list(range(16, 24))
  assert _raw(written.folder, 'train') == _raw(plain, 'train')


def test_a_shard_that_raised_is_done_again(tmp_path, plain):
  broken = tmp_path / 'broken'
  broken.touch()
  work = functools.partial(_breaks_at_20, broken=str(broken))
  with pytest.raises(MiraInputError, match='the power went') as caught:
    _write(tmp_path / 'out', work)
  assert caught.value.code == 'beam_failed'
  broken.unlink()
  written = _write(tmp_path / 'out', work)
  assert _raw(written.folder, 'train') == _raw(plain, 'train')


def _breaks_at_20(job: int, broken: str):
  if job == 20 and os.path.exists(broken):
    raise RuntimeError('the power went')
  return _work(job)


@pytest.mark.parametrize(
  'changes',
  [{'metadata': {'size': 8}}, {'splits': {'train': range(1, 41)}}],
)
def test_shards_of_another_run_are_not_used(tmp_path, monkeypatch, changes):
  _stopped(tmp_path / 'out', monkeypatch)
  work, log = _log(tmp_path / 'log')
  _write(tmp_path / 'out', work, **changes)
  splits = changes.get('splits', JOBS)
  assert _ran(log) == [job for jobs in splits.values() for job in jobs]


def test_without_clips_there_is_no_dataset_and_no_shard(tmp_path):
  with pytest.raises(MiraInputError, match='unreadable') as caught:
    _write(tmp_path, splits={'train': range(24, 32)})
  assert caught.value.code == 'no_clips'
  assert not list(tmp_path.glob('toy/*'))


def test_an_unknown_runner_and_a_dataset_that_is_there(tmp_path, plain):
  with pytest.raises(MiraInputError, match=r'beam_failed.*NoRunner'):
    _write(tmp_path, runner='NoRunner')
  shutil.copytree(plain.parents[1], tmp_path / 'copy')
  with pytest.raises(MiraInputError, match='exists'):
    _write(tmp_path / 'copy')


def test_without_beam_the_hint_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(MiraInputError, match=r'mira-jax\[beam\]') as caught:
    _write(tmp_path)
  assert caught.value.code == 'no_beam'
  assert not list(tmp_path.iterdir())
