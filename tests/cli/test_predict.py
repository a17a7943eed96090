"""`mira predict`: many clips, failures, number formats, exports."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from mira_jax import terminal
from mira_jax.cli import main as cli
from mira_jax.cli import pictures
from mira_jax.errors import ExitCode, MiraInputError, plain
from mira_jax.video import decode
from mira_jax.weights import weights_file
from predictions import predict
from small_models import NAMES, save_model
from videos import make_video

pytestmark = pytest.mark.usefixtures('compile_cache')


# ----- many clips -------------------------------------------------------------


def test_every_format_has_the_same_results(capsys, tree, model):
  arguments = (tree, f'--weights={model}')
  rows = json.loads(predict(capsys, *arguments, '--format=json')[0])
  names = ['a.mp4', 'c.mkv', 'frames']
  assert [pathlib.Path(r['clip']).name for r in rows] == names
  lines = predict(capsys, *arguments, '--format=jsonl')[0].splitlines()
  assert [json.loads(line) for line in lines] == rows
  text, _ = predict(capsys, *arguments, '--format=csv')
  table = list(csv.DictReader(io.StringIO(text)))
  for row, other in zip(table, rows, strict=True):
    assert (row['clip'], row['label']) == (other['clip'], other['label'])
    for name in NAMES:
      assert float(row[name]) == pytest.approx(other['classes'][name], abs=1e-6)
  assert 'a.mp4' in predict(capsys, *arguments)[0]


def test_threads_and_other_clips_change_nothing(capsys, tree, model):
  clips = (tree / 'a.mp4', tree / 'b/c.mkv', tree / 'b/deep/frames')
  weights = f'--weights={model}'
  alone = [
    json.loads(predict(capsys, clip, weights, '--json')[0])[0] for clip in clips
  ]
  together, _ = predict(capsys, tree, weights, '--json', '--threads=4')
  assert json.loads(together) == alone


def test_other_files_of_a_folder_are_counted(capsys, tree, model, tmp_path):
  clips = tmp_path / 'clips'
  shutil.copytree(tree, clips, symlinks=True)
  for name in ('cover.jpg', 'notes.txt', 'old.rmvb'):
    (clips / name).write_bytes(b'x')
  (clips / 'linked').symlink_to(tmp_path.parent)
  # A kind of video that is not read, and a link out of the folder, are errors.
  flags = (f'--weights={model}', '--format=jsonl')
  text, err = predict(capsys, clips, *flags, fails=True)
  rows = [json.loads(line) for line in text.splitlines()]
  assert len(rows) == 4
  assert rows[-1]['clip'] == str(clips / 'linked')
  assert rows[-1]['error'] == 'outside_root'
  assert err.splitlines()[-3:] == [
    'mira: passed over: 1 hidden or of the system: .hidden.mp4',
    'mira: passed over: 1 pictures beside videos',
    'mira: passed over: 3 of another kind: .rmvb .txt',
  ]


# ----- errors of one clip -----------------------------------------------------


@pytest.fixture
def odd_names(tmp_path):
  """Three clips, of which the middle one has a name that is not text."""
  names = ['$a$', 'gbk\udcb6 \x1b[31m\n[red]\u202e', 'z']
  (tmp_path / 'clips').mkdir()
  for name in names:
    make_video(tmp_path / 'clips' / f'{name}.mp4')
  return tmp_path / 'clips', [str(tmp_path / f'clips/{n}.mp4') for n in names]


def test_names_are_escaped_and_kept(
  capsys, odd_names, model, tmp_path, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '300')
  folder, clips = odd_names
  out = tmp_path / 'pictures'
  arguments = ['predict', str(folder), f'--weights={model}', f'--out={out}']
  assert cli.main([*arguments, '--format=json']) == ExitCode.OK
  text = capsys.readouterr().out
  assert [row['clip'] for row in json.loads(text)] == clips
  assert '\x1b' not in text
  pictures = {path.stem for path in out.glob('*.png')}
  assert pictures == {pathlib.Path(clip).stem for clip in clips}
  shown = plain(pathlib.Path(clips[1]).name)
  for form in ('table', 'csv'):
    text, _ = predict(capsys, folder, f'--weights={model}', f'--format={form}')
    assert shown in text
    assert '\x1b' not in text


@pytest.mark.parametrize('form', ['json', 'table'])
def test_the_other_clips_go_on(capsys, odd_names, model, tmp_path, form):
  """A picture that cannot be written is an error of its clip alone."""
  out = tmp_path / 'p'
  (out / '$a$.png').mkdir(parents=True)
  code = cli.main([
    *('predict', str(odd_names[0] / '?a?.mp4'), str(odd_names[0] / 'z.mp4')),
    *(f'--weights={model}', f'--out={out}', f'--format={form}'),
  ])  # fmt: skip
  text, err = capsys.readouterr()
  assert code == ExitCode.USAGE
  assert err.startswith('mira: os_error: ')
  assert err.count('\n') == 1
  assert 'z.mp4' in text.replace('\n', '')
  assert {path.name for path in out.glob('z.*')} == {'z.png', 'z.npz'}
  assert not [*out.glob('*.part')]
  if form == 'json':
    assert [row.get('error') for row in json.loads(text)] == ['os_error', None]


@pytest.mark.parametrize(
  ('trouble', 'code'),
  [
    (MemoryError(), 'out_of_memory'),
    (OSError(errno.ENOSPC, 'No space left', 'x'), 'os_error'),
    (ValueError('a\nb'), 'unexpected'),
  ],
)
def test_any_error_of_a_clip_is_one_line(trouble, code):
  with pytest.raises(MiraInputError) as caught, pictures.reported('clip'):
    raise trouble
  assert (caught.value.code, caught.value.path) == (code, 'clip')
  assert '\n' not in str(caught.value)


def test_finite_weights_may_give_numbers_that_are_not(
  capsys, tree, model, tmp_path
):
  variables, metadata = weights_file.load_weights(model)
  large = jax.tree.map(lambda x: x * 1e38, variables['params'])
  path = weights_file.save_weights(
    tmp_path / 'w.safetensors', large, variables.get('mira', {}), metadata
  )
  text, err = predict(
    capsys, tree / 'a.mp4', f'--weights={path}', '--format=json', fails=True
  )
  assert [row['error'] for row in json.loads(text)] == ['not_finite']
  assert err.startswith(f'mira: not_finite: {tree / "a.mp4"}: ')


def test_an_interrupt_keeps_earlier_results(capsys, tree, model, monkeypatch):
  read = decode.read_clip

  def interrupted(path, **options):
    if str(path).endswith('.mkv'):
      signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
      time.sleep(1)
    return read(path, **options)

  monkeypatch.setattr(decode, 'read_clip', interrupted)
  first = str(tree / 'a.mp4')
  code = cli.main([
    *('predict', first, first, str(tree / 'b/c.mkv'), '--threads=1'),
    *(f'--weights={model}', '--no-picture', '--json'),
  ])  # fmt: skip
  text, err = capsys.readouterr()
  assert (code, err) == (terminal.INTERRUPTED, 'mira: interrupted\n')
  rows = json.loads(text)
  assert rows
  assert all(row['clip'] == first for row in rows)


def test_any_stream_and_few_imports(tree, model, tmp_path):
  """As from a notebook, into a log that takes nothing but ASCII."""
  clip = tmp_path / 'Ƭ\udcb6.mp4'
  clip.write_bytes((tree / 'a.mp4').read_bytes())
  program = """
import sys
from mira_jax.cli import main
codes = [main.main([*sys.argv[1:], f'--format={x}']) for x in ('jsonl', 'csv')]
slow = {'matplotlib', 'orbax', 'optax', 'grain', 'tensorflow_datasets',
        'sklearn', 'scipy', 'openpyxl', 'torch'}
assert not slow & sys.modules.keys(), slow & sys.modules.keys()
sys.exit(max(codes))
"""
  done = subprocess.run(
    [sys.executable, '-c', program, 'predict', clip, '--no-picture',
     f'--weights={model}'],
    env=os.environ | {'PYTHONIOENCODING': 'ascii:strict'}, capture_output=True,
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (ExitCode.OK, b'')
  row, _, cells = done.stdout.splitlines()
  assert json.loads(row)['clip'] == str(clip)
  assert rb'\u01ac\udcb6.mp4' in cells


def test_a_second_start_compiles_nothing(tree, model, tmp_path):
  program = """
import sys
import jax
from mira_jax.cli import main
from mira_jax.inference import engine
engine._SHORTEST = 0.0  # so small a model is worth no file
found = {'hits': 0, 'misses': 0}
def count(event, **_):
  name = event.rpartition('/cache_')[2]
  found[name] = found.get(name, 0) + 1
jax.monitoring.register_event_listener(count)
code = main.main(sys.argv[1:])
print(found['hits'], found['misses'], file=sys.stderr)
sys.exit(code)
"""
  counts = []
  for _ in range(2):
    done = subprocess.run(
      [sys.executable, '-c', program, 'predict', tree / 'a.mp4', '--json',
       f'--weights={model}', f'--out={tmp_path}'],
      env=os.environ | {'XDG_CACHE_HOME': str(tmp_path)},
      capture_output=True, text=True, check=True,
    )  # fmt: skip
    counts.append([int(n) for n in done.stderr.split()])
  (_, compiled), (read, again) = counts
  assert again == 0
  assert read == compiled > 1


# ----- number formats and exports ---------------------------------------------


@pytest.mark.parametrize('options', [['--int8'], ['--dtype=bfloat16']])
def test_other_number_formats_are_near(capsys, tree, model, options):
  arguments = (tree / 'a.mp4', f'--weights={model}', '--json')
  exact, other = (
    json.loads(predict(capsys, *arguments, *more)[0]) for more in ([], options)
  )
  for a, b in zip(exact, other, strict=True):
    assert a['classes'] != b['classes']
    for name in NAMES:
      assert a['classes'][name] == pytest.approx(b['classes'][name], abs=0.01)


def test_an_export_has_the_results_of_its_weights(
  capsys, tree, model, tmp_path
):
  out = tmp_path / 'export'
  assert cli.main(['export', str(model), str(out)]) == ExitCode.OK
  capsys.readouterr()
  for more in ([], ['--timeline', '--fps=5']):
    ours, theirs = (
      json.loads(predict(capsys, tree, f'--weights={x}', '--json', *more)[0])
      for x in (model, out)
    )
    for a, b in zip(ours, theirs, strict=True):
      assert a['clip'] == b['clip']
      for name in NAMES:
        assert a['classes'][name] == pytest.approx(b['classes'][name], abs=1e-5)
  # It has no attention to picture.
  pictures = tmp_path / 'pictures'
  arguments = [str(tree / 'a.mp4'), f'--weights={out}', f'--out={pictures}']
  assert cli.main(['predict', *arguments]) == ExitCode.OK
  assert not list(pictures.iterdir())


# ----- what is said beside the classes ----------------------------------------


def test_lengths_of_clip_and_windows_are_said(capsys, tree, model):
  clip = tree / 'a.mp4'  # 24 frames in a window of 32
  text, _ = predict(capsys, clip, f'--weights={model}')
  assert '24 frames, 1.0 s; 1 window of 1.0 s' in text
  text, _ = predict(capsys, clip, f'--weights={model}', '--timeline')
  assert '24 frames, 1.0 s; sliding windows of 1.0 s' in text


def test_a_model_of_synthetic_faces_says_so(capsys, tree, tmp_path):
  for name, said in (('synthetic_faces_macro', True), ('mine', False)):
    path = save_model(tmp_path / f'{name}.safetensors', datasets=[name])
    _, err = predict(capsys, tree / 'a.mp4', f'--weights={path}')
    assert ('trained on synthetic faces' in err) == said
