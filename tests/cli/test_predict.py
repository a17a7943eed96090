"""Many clips, long clips, faces, number formats: `mira predict` and engine."""

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

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import NAMES, save_model
from test_decode import make_video

from mira_jax import figures, terminal
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError, plain
from mira_jax.inference import engine, find_clips
from mira_jax.mira import MiraConfig
from mira_jax.synthetic import faces
from mira_jax.video import decode, encode
from mira_jax.weights import int8


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'weights.safetensors'
  return save_model(path, MiraConfig())


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  """Clips as a person has them: files, frames, other things between."""
  root = tmp_path_factory.mktemp('tree')
  (root / 'b' / 'deep').mkdir(parents=True)
  make_video(root / 'a.mp4')
  make_video(root / 'b' / 'c.mkv')
  (root / 'b' / 'notes.txt').write_text('no clip')
  (root / '.hidden.mp4').write_text('no clip')
  frames = root / 'b' / 'deep' / 'frames'
  frames.mkdir()
  for i in range(20):
    image = np.full((48, 48, 3), 12 * i, np.uint8)
    cv2.imwrite(str(frames / f'{i:03}.png'), image)
  return root


def predict(capsys, *args, fails=False):
  code = cli.main(['predict', *map(str, args), '--no-picture'])
  out, err = capsys.readouterr()
  assert code == (ExitCode.USAGE if fails else ExitCode.OK), err
  return out, err


# ----- many clips -------------------------------------------------------------


def test_names_stand_for_clips(tree):
  clips = [str(tree / x) for x in ('a.mp4', 'b/c.mkv', 'b/deep/frames')]
  assert find_clips.expand(str(tree)).clips == clips
  assert find_clips.expand(str(tree / '*.mp4')).clips == clips[:1]
  assert find_clips.expand(str(tree / '**' / '*.mkv')).clips == clips[1:2]
  assert find_clips.expand(clips[2]).clips == clips[2:]
  assert find_clips.expand('nowhere.mp4').clips == ['nowhere.mp4']
  for nothing in (tree / '*.avi', tree / 'b' / 'deep' / 'empty'):
    pathlib.Path(tree / 'b' / 'deep' / 'empty').mkdir(exist_ok=True)
    assert find_clips.expand(str(nothing)).clips == [str(nothing)]


def test_clips_are_read_ahead_and_come_in_order():
  started, gate = [], threading.Event()

  def read(name):
    started.append(name)
    if name == 'bad':
      raise MiraInputError('not_video', name, 'no')
    gate.wait(5)
    return name.upper()

  names = ['a', 'b', 'bad', 'c', 'd', 'e']
  results = find_clips.ahead(read, names, threads=2)
  gate.set()
  first = next(results)
  assert first == ('a', 'A')
  assert len(started) <= 4  # not all at once
  rest = list(results)
  assert [name for name, _ in rest] == names[1:]
  assert rest[1][1].code == 'not_video'


def test_a_folder_is_classified_in_every_format(capsys, tree, model):
  arguments = (tree, f'--weights={model}')
  rows = json.loads(predict(capsys, *arguments, '--format=json')[0])
  assert [pathlib.Path(r['clip']).name for r in rows] == [
    'a.mp4', 'c.mkv', 'frames',
  ]  # fmt: skip
  lines = predict(capsys, *arguments, '--format=jsonl')[0].splitlines()
  assert [json.loads(line) for line in lines] == rows
  text, _ = predict(capsys, *arguments, '--format=csv')
  table = list(csv.DictReader(io.StringIO(text)))
  for row, other in zip(table, rows, strict=True):
    assert (row['clip'], row['label']) == (other['clip'], other['label'])
    for name in NAMES:
      assert float(row[name]) == pytest.approx(other['classes'][name], abs=1e-6)
  assert 'a.mp4' in predict(capsys, *arguments)[0]


def test_lines_tell_of_clips_that_fail(capsys, tree, model, tmp_path):
  bad = tmp_path / 'bad.mp4'
  bad.write_text('not a video')
  text, err = predict(
    capsys, bad, tree / 'a.mp4', f'--weights={model}', '--format=jsonl',
    fails=True,
  )  # fmt: skip
  failed, good = map(json.loads, text.splitlines())
  assert failed['error'] == 'not_video'
  assert good['label'] in NAMES
  assert err.count('\n') == 1


def test_threads_and_company_change_nothing(capsys, tree, model):
  weights = f'--weights={model}'
  alone = [
    json.loads(predict(capsys, clip, weights, '--json')[0])[0]
    for clip in find_clips.expand(str(tree)).clips
  ]
  for threads in (1, 4):
    together = predict(capsys, tree, weights, '--json', f'--threads={threads}')
    assert json.loads(together[0]) == alone


def test_what_a_folder_holds_else_is_counted(capsys, tree, model, tmp_path):
  shutil.copytree(tree, tmp_path / 'clips', symlinks=True)
  clips = tmp_path / 'clips'
  for name in ('.hidden.mp4', 'cover.jpg', 'notes.txt'):
    (clips / name).write_bytes(b'x')
  arguments = (f'--weights={model}', '--format=jsonl', '--no-picture')

  def run() -> tuple[int, list[str], str]:
    code = cli.main(['predict', str(clips), *arguments])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err

  code, rows, err = run()
  assert code == ExitCode.OK
  assert len(rows) == 3
  assert err.splitlines()[-3:] == [
    'mira: passed over: 1 hidden or of the system: .hidden.mp4',
    'mira: passed over: 1 pictures beside videos',
    'mira: passed over: 2 of another kind: .txt',
  ]
  (clips / 'old.rmvb').write_bytes(b'x')
  assert run()[0] == ExitCode.USAGE
  (clips / 'old.rmvb').unlink()
  (clips / 'linked').symlink_to(tmp_path.parent)
  code, rows, _ = run()
  assert code == ExitCode.USAGE
  assert rows[-1] == {
    'clip': str(clips / 'linked'),
    'error': 'outside_root',
    'hint': 'the link leads out of the folder; copy what it leads to',
  }


# ----- what goes wrong with one clip ------------------------------------------


@pytest.fixture
def odd_names(tmp_path):
  """Three clips, of which the middle one has a name that is no text at all."""
  names = ['$a$', 'gbk\udcb6 \x1b[31m\n[red]\u202e', 'z']
  (tmp_path / 'clips').mkdir()
  for name in names:
    make_video(tmp_path / 'clips' / f'{name}.mp4')
  return tmp_path / 'clips', [str(tmp_path / f'clips/{n}.mp4') for n in names]


def test_names_are_shown_and_kept(
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


@pytest.mark.parametrize(
  ('form', 'trouble', 'code'),
  [
    ('json', MemoryError(), 'out_of_memory'),
    ('json', ValueError('a\nb'), 'unexpected'),
    ('json', OSError(errno.ENOSPC, 'No space left', 'x'), 'os_error'),
    ('table', ValueError(), 'unexpected'),
    ('csv', ValueError(), 'unexpected'),
    ('jsonl', ValueError(), 'unexpected'),
  ],
)
def test_the_other_clips_go_on(
  capsys, odd_names, model, tmp_path, monkeypatch, form, trouble, code
):
  draw = figures.clip_figure

  def fails_once(clip):
    if '$a$' in clip.title:
      raise trouble
    return draw(clip)

  monkeypatch.setattr(figures, 'clip_figure', fails_once, raising=False)
  code_of_all = cli.main([
    *('predict', str(odd_names[0] / '?a?.mp4'), str(odd_names[0] / 'z.mp4')),
    *(f'--weights={model}', f'--out={tmp_path / "p"}', f'--format={form}'),
  ])  # fmt: skip
  text, err = capsys.readouterr()
  assert code_of_all == ExitCode.USAGE
  assert err.startswith(f'mira: {code}: ')
  assert err.count('\n') == 1
  assert 'z.mp4' in text.replace('\n', '')
  if form == 'json':
    assert [row.get('error') for row in json.loads(text)] == [code, None]


@pytest.mark.parametrize('form', ['table', 'json', 'jsonl', 'csv'])
def test_an_interrupt_keeps_what_is_there(
  capsys, tree, model, monkeypatch, form
):
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
    *(f'--weights={model}', '--no-picture', f'--format={form}'),
  ])  # fmt: skip
  text, err = capsys.readouterr()
  assert code == terminal.INTERRUPTED
  assert err == 'mira: interrupted\n'
  if form == 'json':
    rows = json.loads(text)
    assert rows
    assert all(row['clip'] == first for row in rows)
  else:
    assert 'a.mp4' in text.replace('\n', '')


def test_any_stream_and_no_matplotlib(tree, model, tmp_path):
  """As from a notebook, into a log that takes nothing but ASCII."""
  clip = tmp_path / 'Ƭ\udcb6.mp4'
  clip.write_bytes((tree / 'a.mp4').read_bytes())
  program = """
import sys
from mira_jax.cli import main as cli
codes = [cli.main([*sys.argv[1:], f'--format={x}']) for x in ('jsonl', 'csv')]
assert 'matplotlib' not in sys.modules
sys.exit(max(codes))
"""
  done = subprocess.run(
    [
      *(sys.executable, '-c', program, 'predict', clip, '--no-picture'),
      f'--weights={model}',
    ],
    env=os.environ
    | {'PYTHONIOENCODING': 'ascii:strict', 'MPLBACKEND': 'module://absent'},
    capture_output=True,
  )
  assert (done.returncode, done.stderr) == (ExitCode.OK, b'')
  row, _, cells = done.stdout.splitlines()
  assert json.loads(row)['clip'] == str(clip)
  assert rb'\u01ac\udcb6.mp4' in cells


# ----- batches ----------------------------------------------------------------


def test_batches_are_of_few_sizes(model):
  scorer, _ = engine.load_file(model, 13)
  parts = len(jax.devices())
  assert scorer.buckets == (parts, 2 * parts)
  scorer = engine.Engine(
    scorer.model, jax.device_get(scorer._variables), 5,
    jax.sharding.Mesh(
      np.array(jax.devices()[:1]).reshape(1, 1, 1), ('data', 'fsdp', 'model')
    ),
  )  # fmt: skip
  assert scorer.buckets == (1, 2, 4, 5)
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (12, 16, 32, 32, 3), np.uint8)
  whole = scorer.probabilities(video)
  assert scorer._score._cache_size() == 2  # 5, 5, 2
  for count in (1, 2, 3, 5):
    np.testing.assert_allclose(
      scorer.probabilities(video[:count]), whole[:count], atol=1e-6
    )
  assert scorer._score._cache_size() == 4


# ----- long clips -------------------------------------------------------------


def test_every_second_has_its_own_probabilities(model):
  scorer, _ = engine.load_file(model, 8)
  rng = np.random.default_rng(0)
  fps, rate, span = 10.0, 2, 32
  frames = rng.integers(0, 256, (97, 32, 32, 3), np.uint8)
  found = scorer.timeline(frames, fps, rate=rate, fit='crop', stride=0.7)
  assert found.shape == (10, 7)
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
  # By hand: windows every 7 frames, and one that ends with the clip.
  starts = [*range(0, 65, 7), 65]
  windows = np.stack([frames[s : s + span : rate] for s in starts])
  rows = scorer.probabilities(windows).astype(np.float64)
  for second in range(10):
    seen = {*range(10 * second, 10 * second + 10)}
    weights = [len(seen & {*range(s, s + span)}) for s in starts]
    expected = np.average(rows, axis=0, weights=weights)
    np.testing.assert_allclose(found[second], expected, rtol=1e-5)


@pytest.mark.parametrize(('count', 'seconds'), [(5, 1), (32, 2), (33, 2)])
def test_short_clips_have_a_timeline_too(model, count, seconds):
  scorer, _ = engine.load_file(model, 8)
  frames = np.zeros((count, 32, 32, 3), np.uint8)
  found = scorer.timeline(frames, 20.0, rate=2, fit='crop', stride=99)
  assert found.shape == (seconds, 7)
  assert np.isfinite(found).all()


def test_a_timeline_is_told_and_drawn(capsys, tmp_path, model):
  clip = tmp_path / 'long.mp4'
  drawn = faces.draw_clip(
    1, split='test', seed=0, size=64, num_frames=120, difficulty='macro'
  )
  encode.write_video(clip, drawn.frames, 25)
  arguments = [clip, f'--weights={model}', '--timeline', '--stride=0.3']
  (row,) = json.loads(predict(capsys, *arguments, '--json')[0])
  seconds = [x['second'] for x in row['timeline']]
  assert seconds == list(range(int(np.ceil(120 / row['fps']))))
  text, _ = predict(capsys, *arguments, '--format=csv')
  table = list(csv.DictReader(io.StringIO(text)))
  assert [int(x['second']) for x in table] == seconds
  means = {n: np.mean([float(x[n]) for x in table]) for n in NAMES}
  for name in NAMES:
    assert means[name] == pytest.approx(row['classes'][name], abs=1e-5)
  out = tmp_path / 'pictures'
  code = cli.main(['predict', *map(str, arguments), f'--out={out}'])
  assert code == ExitCode.OK
  assert 'seconds' in capsys.readouterr().out
  arrays = np.load(out / 'long.npz')
  assert arrays['timeline'].shape == (len(seconds), 7)
  assert (out / 'long.png').stat().st_size > 10_000


def test_frames_have_no_seconds_unless_they_are_told(capsys, tree, model):
  folder = tree / 'b' / 'deep' / 'frames'
  arguments = (folder, f'--weights={model}', '--timeline')
  _, err = predict(capsys, *arguments, fails=True)
  assert 'no_fps' in err
  text, _ = predict(capsys, *arguments, '--fps=5', '--json')
  assert len(json.loads(text)[0]['timeline']) == 4


@pytest.mark.parametrize('flag', ['--stride=0', '--fps=-1', '--fps=nan'])
def test_times_are_above_zero(capsys, tree, flag):
  with pytest.raises(SystemExit) as caught:
    cli.main(['predict', str(tree), '--timeline', flag])
  assert caught.value.code == ExitCode.USAGE
  assert 'is not above 0' in capsys.readouterr().err


# ----- faces ------------------------------------------------------------------


def test_the_largest_face_is_cut_out(capsys, tmp_path, model):
  drawn = faces.draw_clip(
    3, split='test', seed=0, size=160, num_frames=16, difficulty='macro'
  ).frames
  scene = np.full((16, 320, 480, 3), 90, np.uint8)
  scene[:, 100:260, 280:440] = drawn
  scene[:, 20:84, 30:94] = [cv2.resize(f, (64, 64)) for f in drawn]
  for i, frame in enumerate(scene):
    (tmp_path / 'scene').mkdir(exist_ok=True)
    cv2.imwrite(str(tmp_path / f'scene/{i:02}.png'), frame[..., ::-1])
  cut = find_clips.read_face(tmp_path / 'scene', 64)
  assert cut.frames.shape[1] == cut.frames.shape[2] == 64
  # More of the large face than of the grey around both.
  grey = (np.abs(cut.frames.astype(int) - 90).max(-1) < 3).mean()
  assert grey < 0.35
  text, _ = predict(
    capsys, tmp_path / 'scene', f'--weights={model}', '--track', '--json'
  )
  tracked = json.loads(text)[0]['classes']
  whole = predict(capsys, tmp_path / 'scene', f'--weights={model}', '--json')
  assert json.loads(whole[0])[0]['classes'] != tracked


def test_threads_find_the_same_faces(capsys, tmp_path, model):
  for clip in range(10):
    scene = np.full((8, 160, 200, 3), 90, np.uint8)
    scene[:, 5 * clip : 5 * clip + 96, 9 * clip : 9 * clip + 96] = (
      faces.draw_clip(
        clip, split='test', seed=0, size=96, num_frames=8, difficulty='macro'
      ).frames
    )
    encode.write_video(tmp_path / f'{clip}.mp4', scene, 25)
  arguments = [tmp_path, f'--weights={model}', '--track', '--json']
  one, four = (
    json.loads(predict(capsys, *arguments, f'--threads={n}')[0]) for n in (1, 4)
  )
  assert len({row['probability'] for row in one}) == 10
  assert one == four


def test_nobody_is_one_line(capsys, tree, model):
  frames = tree / 'b' / 'deep' / 'frames'
  _, err = predict(capsys, frames, f'--weights={model}', '--track', fails=True)
  assert 'no_face' in err
  assert err.count('\n') == 1


# ----- number formats ---------------------------------------------------------


def test_eight_bits_keep_the_largest_weight_of_every_output():
  rng = np.random.default_rng(0)
  variables = {
    'params': {
      'attn': {
        'qkv': {'kernel': rng.normal(size=(8, 3, 2, 4)).astype(np.float32)}
      },
      'mlp': {'fc1': {'kernel': rng.normal(size=(8, 16)).astype(np.float32)}},
      'blocks': {
        'mlp': {'fc1': {'kernel': rng.normal(size=(2, 8, 4)).astype('f')}}
      },
      'head': {'kernel': np.ones((8, 3), np.float32)},
      'norm': {'scale': np.ones(8, np.float32)},
      'to_decoder': {'kernel': np.zeros((4, 4), np.float32)},
    }
  }
  held = int8.quantise(variables)
  params = held['params']
  assert params['attn']['qkv']['kernel'].factors.shape == (1, 3, 2, 4)
  assert params['mlp']['fc1']['kernel'].factors.shape == (1, 16)
  assert params['blocks']['mlp']['fc1']['kernel'].factors.shape == (2, 1, 4)
  for name in ('head', 'norm'):
    assert params[name] is not None
    assert not isinstance(next(iter(params[name].values())), int8.Int8)
  back = int8.restore(held)

  def close(a, b):
    steps = np.abs(b).max(axis=0, keepdims=True) / 127
    assert (np.abs(a - b) <= steps / 2 + 1e-7).all()

  for part in ('attn', 'mlp', 'to_decoder'):
    jax.tree.map(close, back['params'][part], variables['params'][part])
  kernel = params['mlp']['fc1']['kernel']
  assert kernel.values.dtype == jnp.int8
  assert (np.abs(kernel.values).max(axis=0) == 127).all()


@pytest.mark.parametrize('options', [['--int8'], ['--dtype=bfloat16']])
def test_other_number_formats_are_near(capsys, tree, model, options):
  arguments = (tree, f'--weights={model}', '--json')
  exact, other = (
    json.loads(predict(capsys, *arguments, *more)[0]) for more in ([], options)
  )
  for a, b in zip(exact, other, strict=True):
    assert a['classes'] != b['classes']
    for name in NAMES:
      assert a['classes'][name] == pytest.approx(b['classes'][name], abs=0.01)


def test_eight_bits_are_what_is_held(model):
  exact, _ = engine.load_file(model, 1)
  held, _ = engine.load_file(model, 1, eight_bits=True)
  large, small = (
    sum(x.nbytes for x in jax.tree.leaves(e._variables)) for e in (exact, held)
  )
  assert small < 0.45 * large  # of so small a model much is not kernels


# ----- exports ----------------------------------------------------------------


def test_an_export_says_what_its_weights_say(capsys, tree, model, tmp_path):
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
  # Without maps there is no picture of them.
  clip, pictures = tree / 'a.mp4', tmp_path / 'pictures'
  arguments = ['predict', str(clip), f'--weights={out}', f'--out={pictures}']
  assert cli.main(arguments) == ExitCode.OK
  assert not list(pictures.iterdir())
  assert cli.main([*arguments, '--int8']) == ExitCode.USAGE
