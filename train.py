"""Trains a video transformer and leaves its weights in one file.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any field of the configuration is a flag, such as --config.optim.lr=3e-4. The
same command resumes a run that was stopped. A run's folder holds config.json,
metrics.jsonl, tensorboard/, checkpoints/ and at the end weights.safetensors,
curves.png and, of a classifier, outcome.json.
"""

from __future__ import annotations

import jax
from absl import flags
from ml_collections import config_flags

from mira_jax import engine, loop, training

_CONFIG = config_flags.DEFINE_config_file('config', help_string='a file.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run.')
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'one of several hosts that all run this command.'
)
_RESUME = flags.DEFINE_enum(
  'resume',
  'auto',
  ['auto', 'strict'],
  "auto goes back over damaged checkpoints; with strict that's an error.",
)
flags.mark_flags_as_required(['config', 'workdir'])


def main(_):
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  engine.use_compile_cache()
  workdir = training.open_workdir(_WORKDIR.value)
  loop.train(_CONFIG.value, workdir, strict=_RESUME.value == 'strict')


if __name__ == '__main__':
  training.run(main)
