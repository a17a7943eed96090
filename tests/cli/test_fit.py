"""`mira fit`: its choices, their file, and all that it makes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mira_jax import baseline, config
from mira_jax.cli import fit, main
from mira_jax.data import dataset
from mira_jax.data.protocol import Rules
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import predictions
from mira_jax.prepare import prepare

pytestmark = pytest.mark.usefixtures('compile_cache')

SMALL = (
  '--config.model.dim=16', '--config.model.depth=1', '--config.model.heads=2',
  '--config.train.epochs=2', '--config.data.batch_size=8',
)  # fmt: skip


def clips(root, name='S{person:02}_{clip}', frames=3, side=48, people=4):
  """Bright and dark clips, two of each person."""
  rng = np.random.default_rng(0)
  for label, level in (('bright', 170), ('dark', 40)):
    for person in range(people):
      folder = root / label / name.format(person=person, clip=label)
      folder.mkdir(parents=True)
      for i in range(frames):
        frame = rng.integers(0, 60, (side, side, 3)) + level
        cv2.imwrite(str(folder / f'{i:03}.png'), frame.astype(np.uint8))
  return root


def choices(root, out, *size):
  prepare.prepare_folder(root, out, workers=0)
  recipe, found = fit.choose(dataset.open(out), False, 'exact', *size)
  return recipe, {choice.field: choice.value for choice in found}


def test_one_command_from_clips_to_a_report(tmp_path, capsys):
  run = tmp_path / 'run'
  command = [
    'fit',
    str(clips(tmp_path / 'clips', people=10)),
    f'--workdir={run}',
  ]
  command += ['--config.data.num_folds=2', *SMALL]
  assert main.main(command) == ExitCode.OK
  out = capsys.readouterr().out
  for line in (
    'subjects: 10, guessed from',
    'data.protocol=folds: of 10 people',
    'model.frames=3: nearly all clips have 3 frames',
    'baseline: hog and a linear SVM: WAR',
    '2 of 2 folds pooled: WAR',
  ):
    assert line in out
  report = out[out.rindex('macro F1') :]
  assert 'runs' in report
  assert 'baseline' in report
  rows = predictions.read(run / 'runs/eval/folds' / predictions.NAME)
  assert len(rows.clip) == 20  # each clip is tested once
  # Everything is there: nothing is prepared or trained again.
  weights = run / 'runs' / 'fold-0' / 'weights.safetensors'
  before = weights.stat().st_mtime_ns
  file = run / fit.CONFIG
  file.write_text(file.read_text() + '\n# mine\n')
  assert main.main(command) == ExitCode.OK
  out = capsys.readouterr().out
  assert 'as it is there' in out
  assert 'training fold' not in out
  assert weights.stat().st_mtime_ns == before
  assert file.read_text().endswith('# mine\n')


def test_a_test_split_of_the_source_is_kept(tmp_path, capsys):
  for split in ('train', 'test'):
    clips(tmp_path / 'clips' / split, people=5)
  command = ['fit', str(tmp_path / 'clips'), f'--workdir={tmp_path / "run"}']
  assert main.main([*command, *SMALL]) == ExitCode.OK
  assert 'data.protocol=split: the clips have' in capsys.readouterr().out
  rows = next((tmp_path / 'run/runs/eval').glob(f'*/{predictions.NAME}'))
  assert len(predictions.read(rows).clip) == 10


def test_choices_follow_the_clips(tmp_path):
  recipe, found = choices(clips(tmp_path / 'a'), tmp_path / 'out_a')
  assert recipe == 'small:6,exact'
  assert found.pop('data.dataset') == str(tmp_path / 'out_a')
  assert found == {
    'data.protocol': 'folds', 'data.num_folds': 4, 'model.frames': 3,
    'model.tubelet': 1, 'model.image_size': 48,
  }  # fmt: skip
  for old, new in (('bright', 'L12'), ('dark', 'R12')):
    (tmp_path / 'a' / old).rename(tmp_path / 'a' / new)
  recipe, found = choices(tmp_path / 'a', tmp_path / 'out_lateral', 'B')
  assert recipe == 'small:6,exact,B'
  assert 'model.frames' not in found
  assert (found['data.flip'], found['model.mirror']) == (False, False)
  # Nobody is known, and frames are large and many.
  root = clips(tmp_path / 'b', 'x{person}', frames=9, side=70)
  _, found = choices(root, tmp_path / 'out_b')
  assert found.keys() == {'data.dataset', 'data.protocol'}
  assert found['data.protocol'] == 'split'
  root = clips(tmp_path / 'c', frames=5, side=30, people=7)
  _, found = choices(root, tmp_path / 'out_c')
  assert found['data.num_folds'] == 5
  assert (found['model.frames'], found['model.image_size']) == (4, 24)
  assert found['model.patch'] == 8


def test_folds_of_some_clips_are_left_out_aloud(tmp_path):
  root = clips(tmp_path / 'a')
  rows = ['path,label,subject,fold']
  for person in range(4):
    for label in ('bright', 'dark'):
      name = f'{label}/S{person:02}_{label}'
      rows.append(f'{name},{label},{person},{person % 2 if person else ""}')
  (tmp_path / 'clips.csv').write_text('\n'.join(rows))
  out = tmp_path / 'out'
  report = prepare.prepare_folder(
    root, out, table=tmp_path / 'clips.csv', workers=0
  )
  assert any('a fold: 2 of 8 clips' in text for text in report.warnings)
  _, found = fit.choose(dataset.open(out), False, 'exact')
  reason = next(x.reason for x in found if x.field == 'data.protocol')
  assert 'without a fold: 2, so that those named are not used' in reason


@pytest.mark.parametrize(
  'text', ['250', '20,plain', '3,flashlite', '250,exact,S']
)
def test_the_recipe_is_valid_for_every_number_of_clips(text):
  cfg = config.load(f'small:{text}')
  config.validate(cfg)
  assert cfg.data.batch_size <= int(text.partition(',')[0])
  assert (cfg.model.mira is None) == ('plain' in text)


@pytest.mark.parametrize('text', ['', '0', 'many', '5,fast', '5,exact,XL'])
def test_what_is_no_recipe_is_refused(text, capsys):
  flags = [f'--config=small:{text}', '--workdir=unused']
  assert main.main(['train', *flags]) == ExitCode.USAGE
  assert 'CLIPS,MODE,SIZE' in capsys.readouterr().err


def started(monkeypatch, *command):
  """The exit code of `mira fit` without training; and what it would run."""
  ran = []
  monkeypatch.setattr(fit, '_command', lambda *args: ran.append(args))
  return main.main(['fit', *map(str, command)]), ran


def table(path, column, values):
  """A table of `clips`, whose people have one of the values each."""
  rows = [
    f'{label}/S{person:02}_{label},{label},S{person:02},{value}'
    for label in ('bright', 'dark')
    for person, value in enumerate(values)
  ]
  path.write_text('\n'.join([f'path,label,subject,{column}', *rows, '']))
  return path


def test_one_person_is_the_reason_of_a_split(tmp_path):
  root = clips(tmp_path / 'a', 'S01_{person}')
  prepare.prepare_folder(root, tmp_path / 'out', workers=0)
  found = fit.choose(dataset.open(tmp_path / 'out'), False, 'exact')[1]
  assert '1 people, 0 clips of unknown ones' in {x.reason for x in found}


@pytest.mark.parametrize(
  ('column', 'values', 'lines'),
  [
    ('fold', '1111', ['data.num_folds=4']),
    ('split', ('train', 'train', 'train', 'val'), ['eval.split=val']),
  ],
)
def test_a_fold_or_split_that_tests_nothing(
  tmp_path, capsys, monkeypatch, column, values, lines
):
  root, run = clips(tmp_path / 'a'), tmp_path / 'run'
  names = table(tmp_path / 'a.csv', column, values)
  command = (root, f'--workdir={run}', f'--table={names}')
  assert started(monkeypatch, *command)[0] == ExitCode.OK
  out = capsys.readouterr().out
  assert all(line in out for line in lines)
  assert 'without a fold' not in out


def test_a_later_start_does_not_ignore_other_flags(
  tmp_path, capsys, monkeypatch
):
  root, other = clips(tmp_path / 'a'), clips(tmp_path / 'b', people=3)
  place = f'--workdir={tmp_path / "run"}'
  assert started(monkeypatch, root, place)[0] == ExitCode.OK
  assert started(monkeypatch, root, place, '--mode=exact')[0] == ExitCode.OK
  for named, *flags in (
    (other,),
    (tmp_path / 'none',),
    (root, '--mode=plain'),
    (root, '--size=B'),
    (root, f'--table={tmp_path / "a.csv"}'),
  ):
    code, ran = started(monkeypatch, named, place, *flags)
    assert (code, ran) == (ExitCode.USAGE, [])
    assert 'was started with' in capsys.readouterr().err


def test_the_baseline_is_of_the_dataset_that_is_trained(
  tmp_path, capsys, monkeypatch
):
  root, out = clips(tmp_path / 'b', people=3), tmp_path / 'out'
  prepare.prepare_folder(root, out, workers=0)
  command = [clips(tmp_path / 'a'), f'--workdir={tmp_path / "run"}']
  command += ['--config.data.num_folds=2', f'--config.data.dataset={out}']
  assert started(monkeypatch, *command)[0] == ExitCode.OK
  assert [*out.glob('*/*/baseline-*')]


def test_a_dataset_that_is_only_read_and_a_folder_with_a_colon(
  tmp_path, capsys, monkeypatch
):
  root, out = clips(tmp_path / 'a'), tmp_path / 'out'
  prepare.prepare_folder(root, out, workers=0)
  asked = baseline.folder([dataset.open(out)], Rules())

  def write(made, place, rules, before=baseline.write):
    if place.parent == asked.parent:
      raise MiraInputError('not_written', place, 'read-only')
    return before(made, place, rules)

  monkeypatch.setattr(baseline, 'write', write)
  run = tmp_path / 'at 10:30'
  assert started(monkeypatch, out, f'--workdir={run}')[0] == ExitCode.OK
  assert [*(run / fit.RUNS).glob('baseline-*/folds.json')]
  flags = (f'--workdir={tmp_path / "b"}', '--table=a.csv')
  assert started(monkeypatch, out, *flags)[0] == ExitCode.USAGE
  assert 'is prepared already' in capsys.readouterr().err
