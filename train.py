"""Trains a video transformer and leaves its weights in one file.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any field of the configuration is a flag, such as --config.optim.lr=3e-4. The
same command resumes a run that was stopped. A run's folder holds config.json,
metrics.jsonl, tensorboard/, checkpoints/ and at the end weights.safetensors,
curves.png and, of a classifier, outcome.json.
"""

from __future__ import annotations

from mira_jax import terminal
from mira_jax.cli import flags as cli_flags

if __name__ == '__main__':  # what follows takes seconds to import
  terminal.leave_on_interrupt('train.py')

from absl import flags
from ml_collections import config_flags

from mira_jax.cli import hosts
from mira_jax.devices import platform
from mira_jax.inference import engine
from mira_jax.train import loop, run_folder

_CONFIG = config_flags.DEFINE_config_file('config', help_string='a file.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run.')
_DEVICE = flags.DEFINE_enum('device', None, platform.PLATFORMS, platform.HELP)
_FORCE = flags.DEFINE_bool(
  'force', False, 'resume although the configuration or the data changed.'
)
_DEBUG_NANS = flags.DEFINE_bool(
  'debug_nans', False, 'stop at the first operation that is not finite.'
)
_RESUME = flags.DEFINE_enum(
  'resume',
  'auto',
  ['auto', 'strict'],
  "auto goes back over damaged checkpoints; with strict that's an error.",
)
flags.mark_flags_as_required(['config', 'workdir'])


def main(_):
  platform.start(_DEVICE.value, meet=hosts.join)
  engine.use_compile_cache()
  loop.train(
    _CONFIG.value,
    run_folder.open_workdir(_WORKDIR.value),
    strict=_RESUME.value == 'strict',
    force=_FORCE.value,
    debug_nans=_DEBUG_NANS.value,
  )


if __name__ == '__main__':
  cli_flags.run(main)
