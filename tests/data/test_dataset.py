"""Prepared datasets: what is written is read, without TensorFlow."""

from __future__ import annotations

import fcntl
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterable

import numpy as np
import pytest

import runs
from mira_jax.data import dataset, pool, records
from mira_jax.data.dataset import Clip
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.video import images


def _clips(count: int) -> list[Clip]:
  frame = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
  return [
    Clip(
      clip_id=f'happy/clip {i} é',
      frames=[images.encode_jpeg(frame + i + j) for j in range(1 + i % 3)],
      label=i % 2,
      subject=f's{i}',
      fps=12.5,
      onset=0,
      apex=i,
      action_units='6+12',
      fold=i % 5,
    )
    for i in range(count)
  ]


def _write(out: pathlib.Path, **splits: Iterable[Clip]) -> pathlib.Path:
  return dataset.write(
    out,
    name='toy',
    class_names=['Überrascht', 'a b'],
    splits={key: lambda clips=clips: clips for key, clips in splits.items()},
    description='Toy clips.',
    metadata={'size': 16},
  )


def _code(call, *args, **kwargs) -> tuple[str, ExitCode]:
  with pytest.raises(MiraInputError) as caught:
    call(*args, **kwargs)
  return caught.value.code, caught.value.exit_code


def test_clips_come_back_equal_and_in_order(tmp_path, monkeypatch):
  monkeypatch.setattr(records, '_CLIPS_PER_SHARD', 4)
  monkeypatch.setattr(dataset, '_CLIPS_PER_WRITE', 3)
  train, test = _clips(10), _clips(3)
  folder = _write(tmp_path, train=train, test=test, val=[])
  assert len(list(folder.glob('*train.array_record*'))) == 3
  opened = dataset.open(tmp_path)
  assert opened.directory == folder == tmp_path / 'toy' / records.VERSION
  assert opened.name == 'toy'
  assert opened.class_names == ('Überrascht', 'a b')
  assert opened.splits == {'train': 10, 'test': 3}  # an empty one is left out
  assert opened.metadata == {'size': 16}
  source = opened.source('train')
  assert [source[i] for i in range(len(source))] == train
  assert list(opened.source('test')) == test
  data = pickle.dumps(source)  # its path, not its clips
  assert len(data) < 500
  assert pickle.loads(data)[3] == train[3]
  assert _code(opened.source, 'val')[0] == 'no_split'


def test_tensorflow_is_neither_imported_nor_the_network_used(tmp_path):
  program = """
    import sys
    def watch(event, args):
      name = str(args[0]) if args else ''
      if event.startswith('socket.') or (
          event == 'import' and name.split('.')[0] == 'tensorflow'):
        raise SystemExit(f'{event} {args}')
    sys.addaudithook(watch)
    import tensorflow_datasets.core.shuffle as shuffle
    shuffle.MAX_MEM_BUFFER_SIZE = 1  # a split of 1000 MiB, made small
    import numpy as np
    from mira_jax.data import dataset, pipeline
    from mira_jax.video import images
    image = np.zeros((16, 16, 3), np.uint8)
    clip = dataset.Clip(
      clip_id='a', frames=[images.encode_jpeg(image)], label=0)
    dataset.write(
      sys.argv[1], name='toy', class_names=['a'], description='',
      splits={'train': lambda: [clip] * 3})
    source = dataset.open(sys.argv[1]).source('train')
    batch = next(pipeline.train_batches(
      source, frames=2, rate=1, size=16, batch_size=2, seed=0))
    assert batch['video'].shape == (2, 2, 16, 16, 3)
    assert 'tensorflow' not in sys.modules
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program), str(tmp_path)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == done.stderr == ''


def test_a_failed_or_killed_run_leaves_nothing_that_opens(tmp_path):
  def broken():
    yield from _clips(100)
    raise RuntimeError('the power went')

  with pytest.raises(RuntimeError, match='power'):
    _write(tmp_path, train=broken())
  stale = tmp_path / 'toy' / f'incomplete.{records.VERSION}'
  assert not stale.exists()
  _write(tmp_path / 'other', train=_clips(2))
  (tmp_path / 'other' / 'toy' / records.VERSION).rename(stale)
  assert _code(dataset.open, tmp_path) == ('not_a_dataset', ExitCode.DATA)
  _write(tmp_path, train=_clips(2))
  assert not stale.exists()


def test_two_writers_at_once_are_refused(tmp_path):
  with (tmp_path / '.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert _code(_write, tmp_path, train=_clips(1))[0] == 'locked'
  _write(tmp_path, train=_clips(1))
  assert _code(_write, tmp_path, train=_clips(2))[0] == 'exists'
  assert dataset.open(tmp_path).splits == {'train': 1}


def test_what_cannot_be_written(tmp_path):
  assert _code(_write, tmp_path / 'a', train=[])[0] == 'no_clips'
  (tmp_path / 'file').write_text('')
  assert _code(_write, tmp_path / 'file', train=_clips(1))[0] == 'not_written'
  with pytest.raises(MiraInputError, match='bad_name'):
    dataset.write(
      tmp_path, name='A b', class_names=['a'], splits={}, description=''
    )


def test_a_full_disk_leaves_nothing_behind(tmp_path):
  clip = Clip(clip_id='a', frames=[os.urandom(200_000)], label=0)
  with runs.file_limit(100_000):
    code = _code(_write, tmp_path, train=[clip] * 3)
  assert code == ('not_written', ExitCode.NOT_WRITTEN)
  assert not list((tmp_path / 'toy').iterdir())


def test_the_folder_must_hold_one_dataset(tmp_path):
  nothing = ('not_a_dataset', ExitCode.DATA)
  assert _code(dataset.open, tmp_path) == nothing
  assert _code(dataset.open, tmp_path / 'absent') == nothing
  folder = _write(tmp_path / 'a', train=_clips(1))
  _write(tmp_path / 'b', train=_clips(1))
  assert dataset.open(folder).splits == {'train': 1}
  folder.rename(tmp_path / 'a' / '1.0.0')
  (tmp_path / 'b' / 'toy' / records.VERSION).rename(tmp_path / 'b' / '1.0.0')
  assert _code(dataset.open, tmp_path)[0] == 'several_datasets'
  next((tmp_path / 'a').rglob('*.array_record*')).unlink()
  assert _code(dataset.open, tmp_path / 'a') == ('damaged', ExitCode.DATA)


@pytest.mark.parametrize('damage', ['flip', 'cut'])
def test_a_damaged_record_is_an_error_when_it_is_read(tmp_path, damage):
  folder = _write(tmp_path, train=_clips(40))
  records = next(folder.glob('*.array_record*'))
  data = bytearray(records.read_bytes())
  if damage == 'flip':
    data[5000] ^= 0xFF  # inside one of the records, which come first
  records.write_bytes(data if damage == 'flip' else data[: len(data) // 2])
  source = dataset.open(tmp_path).source('train')
  codes = []
  for i in range(len(source)):
    try:
      assert source[i] == _clips(40)[i]
    except MiraInputError as error:
      codes.append(error.code)
  assert codes == ['damaged'] * (1 if damage == 'flip' else 40)


def test_a_newer_version_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'VERSION', '2.0.0')
  _write(tmp_path, train=_clips(1))
  monkeypatch.setattr(records, 'VERSION', '1.0.0')
  assert _code(dataset.open, tmp_path)[0] == 'too_new'


def test_the_index_has_what_the_records_have(tmp_path):
  folder = _write(tmp_path, train=_clips(70), test=_clips(3))
  made = dataset.open(tmp_path)
  index = made.index('train')
  columns = (index.clip_id, index.label, index.subject, index.fold)
  rows = [*zip(*(x.tolist() for x in columns), strict=True)]
  assert rows == [(c.clip_id, c.label, c.subject, c.fold) for c in _clips(70)]
  assert index.label.dtype == index.fold.dtype == np.int64
  assert len(made.index('test').label) == 3
  both = pool.of_dataset(made, ['test', 'train'])
  lengths = [len(clip) for clip in _clips(3) + _clips(70)]
  assert both.num_frames.tolist() == lengths
  assert both.take(both.num_frames > 2).num_frames.tolist() == [3] * 24
  assert _code(made.index, 'val')[0] == 'no_split'
  for text in ('[' * 100_000, '{"train": {}, "test": {"label": [0, 0]}}'):
    (folder / dataset.INDEX).write_text(text)
    assert _code(made.index, 'test') == ('damaged', ExitCode.DATA)


def test_a_class_name_that_changes_is_noticed(tmp_path):
  folder = _write(tmp_path, train=_clips(4))
  names = folder / 'label.labels.txt'
  names.write_text(names.read_text().replace('a b', 'a c'))
  with pytest.raises(MiraInputError) as caught:
    dataset.open(tmp_path)
  assert caught.value.code == 'damaged'
  assert "'a b'] were written, and" in caught.value.hint
  names.write_text('x\nÜberrascht\na b\n')
  # Datasets of older versions have no second copy.
  metadata = folder / 'metadata.json'
  metadata.write_text('{"size": 16}')
  assert dataset.open(tmp_path).class_names == ('x', 'Überrascht', 'a b')


def test_no_damage_to_metadata_is_a_traceback(tmp_path):
  folder = _write(tmp_path, train=_clips(3), test=_clips(1))
  rng = np.random.default_rng(0)
  files = [f for f in folder.iterdir() if f.suffix in ('.json', '.txt')]
  assert len(files) == 5
  errors = []
  for file in sorted(files):
    whole = file.read_bytes()
    for i in rng.choice(len(whole), min(15, len(whole)), replace=False):
      flipped = whole[i] ^ (1 << int(rng.integers(8)))
      file.write_bytes(whole[:i] + bytes([flipped]) + whole[i + 1 :])
      try:
        made = dataset.open(tmp_path)
        for split in made.splits:
          made.source(split)
          made.index(split)
        pool.of_dataset(made, list(made.splits))
      except MiraInputError as error:
        errors.append(error)
    file.write_bytes(whole)
  assert len(errors) > 25
  assert {error.exit_code for error in errors} == {ExitCode.DATA}
  assert not any('\n' in str(error) for error in errors)
  assert dataset.open(tmp_path).splits == {'train': 3, 'test': 1}
