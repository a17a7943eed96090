"""The lines that a run begins with."""

from __future__ import annotations

import numpy as np
import pytest

import runs
from mira_jax import config
from mira_jax.data import dataset, pool
from mira_jax.train import hints, loop
from mira_jax.video import images


@pytest.fixture(scope='module')
def uneven(tmp_path_factory):
  """30 clips of 3 frames; one class has 4, and one has none to train on."""
  frames = [images.encode_jpeg(np.zeros((16, 16, 3), np.uint8))] * 3

  def clip(i, label, person=''):
    name = f'{i}-{label}'
    return dataset.Clip(
      clip_id=name, frames=frames, label=label, subject=person
    )

  train = [clip(i, int(i < 4), f'p{i // 2}') for i in range(30)]
  test = [clip(i, i, 'q') for i in range(3)]
  folder = tmp_path_factory.mktemp('uneven')
  names = ('common', 'rare', 'absent')
  return runs.write(folder, 'uneven', names, train=train, test=test)


def clips(folder, split='train'):
  return pool.of_dataset(dataset.open(folder), [split])


def test_few_steps_are_warned_of_with_epochs_that_suffice():
  cfg = config.Config(train=config.TrainConfig(epochs=6))
  assert hints.of_steps(cfg, 600, 100) == ['steps: 600, 100 per epoch']
  first, second = hints.of_steps(cfg, 54, 9)
  assert first == 'steps: 54, 9 per epoch'
  assert second.startswith('warning: 54 steps are few; ')
  assert '--config.train.epochs=34 ' in second  # 306 steps
  cfg.optim.warmup_epochs = 4
  _, found = hints.of_steps(cfg, 600, 100)
  assert 'rises in 4 of 6 epochs; --config.optim.warmup_epochs=0.6 ' in found
  cfg.optim.warmup_epochs = 1
  # That validation chose so many is no matter of epochs.
  assert len(hints.of_steps(cfg, 18, 9)) == 1


@pytest.mark.parametrize(
  ('frames', 'tubelet', 'fits'),
  [
    (16, 2, '--config.model.frames=3 --config.model.tubelet=1 fits'),
    (4, 1, '--config.model.frames=3 fits'),
    (3, 1, None),
  ],
)
def test_clips_with_fewer_frames_than_the_model_takes(
  uneven, frames, tubelet, fits
):
  cfg = config.Config(model=config.ModelConfig(frames=frames, tubelet=tubelet))
  found = hints.of_frames(cfg, clips(uneven))
  if fits is None:
    assert not found
    return
  (line,) = found
  assert f'clips have 3 frames, the model takes {frames}: ' in line
  assert 'the last one is repeated in 30 of 30 training clips' in line
  assert line.endswith(fits)


def test_nearly_all_clips_have_the_frames_that_are_advised(uneven):
  lengths = np.array([8] * 4 + [9] * 6 + [40] * 90)
  some = clips(uneven).take(np.arange(100) % 30)
  some.num_frames[:] = lengths
  (line,) = hints.of_frames(config.Config(), some)
  assert 'clips have 8 to 40 frames, the model takes 16' in line
  assert 'in 10 of 100 training clips' in line
  assert line.endswith('--config.model.frames=8 fits')
  some.num_frames[10:] = 0  # of an older version: unknown
  (line,) = hints.of_frames(config.Config(), some)
  assert 'in 10 of 10 training clips' in line
  some.num_frames[:] = 0
  assert not hints.of_frames(config.Config(), some)


def test_rare_and_absent_classes(uneven):
  assert hints.of_classes(clips(uneven)) == [
    'warning: no training clip shows absent',
    'rarest class: rare, 4 training clips',
  ]


def test_the_size_of_validation(uneven):
  cfg = config.Config()
  some = clips(uneven)
  size = 'validation: 30 clips of 15 people'
  assert hints.of_validation(cfg, some, decides=True) == [size]
  (line,) = hints.of_validation(cfg, some, decides=False)
  assert line.startswith(f'warning: {size}, too few to choose by')
  assert 'the last weights are kept; --config.eval.min_val_clips=0' in line
  cfg.train.patience = 1
  (line,) = hints.of_validation(cfg, some, decides=False)
  assert 'the last weights are kept, and patience ends nothing;' in line
  some.subject[:] = ''
  (line,) = hints.of_validation(cfg, some, decides=True)
  assert line == 'validation: 30 clips'
  assert not hints.of_validation(cfg, None, decides=False)
  cfg.train.refit = True
  assert not hints.of_validation(cfg, some, decides=True)
  (line,) = hints.of_validation(cfg, some, decides=False)
  assert 'so that they are trained on, too, for all steps;' in line


@pytest.mark.usefixtures('compile_cache')
def test_a_run_begins_with_them(uneven, tmp_path, capsys):
  cfg = runs.tiny(
    uneven, train={'epochs': 1}, eval={'min_val_clips': 50},
    data={'val_fraction': 0.2},
  )  # fmt: skip
  loop.train(cfg, tmp_path)
  shown = capsys.readouterr().out
  hinted, _, _ = shown.partition('step 1/')
  for line in (
    'steps: 3, 3 per epoch',
    'warning: 3 steps are few',
    'the last one is repeated in 24 of 24 training clips',
    'warning: no training clip shows absent',
    'rarest class: rare, ',
    'warning: validation: 6 clips of 3 people, too few to choose by',
  ):
    assert line in hinted
