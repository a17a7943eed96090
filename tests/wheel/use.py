"""Uses an installed wheel in an empty folder, as `make test-wheel` does.

python tests/wheel/use.py MIRA: trains two steps, scores, predicts a clip.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile

TINY = (
  '--config.model.depth=1',
  '--config.model.dim=32',
  '--config.data.train_clips=14',
  '--config.data.test_clips=14',
  '--config.data.batch_size=7',
  '--config.train.epochs=1',
  '--config.eval.views=1',
)
LIBRARY = """
import pathlib, sys
import mira_jax
assert 'jax' not in sys.modules, 'importing the package imports jax'
package = pathlib.Path(mira_jax.__file__).parent
assert 'site-packages' in package.parts, package
assert (package / 'py.typed').exists()
assert (package / 'aot' / 'kernel_cycles.json').exists()
predictor = mira_jax.load('run')
result = predictor.predict('clip.mp4')
assert result.label in predictor.class_names
print(mira_jax.__version__, result.label)
"""


def main(mira: str) -> None:
  """Runs the commands with the program `mira` and the Python beside it."""
  python = str(pathlib.Path(mira).with_name('python'))

  def call(*command: str) -> str:
    print('$', *command, flush=True)
    done = subprocess.run(command, cwd=folder, check=True, stdout=-1, text=True)
    return done.stdout

  with tempfile.TemporaryDirectory() as folder:
    assert 'quickstart' in call(mira, 'configs')
    call(mira, 'train', '--config=quickstart', '--workdir=run', *TINY)
    assert '14 clips' in call(mira, 'eval', '--workdir=run')
    call(mira, 'draw', 'clip.mp4')
    assert 'clip.mp4' in call(
      mira, 'predict', 'clip.mp4', '--workdir=run', '--out=pictures'
    )
    assert (pathlib.Path(folder) / 'pictures' / 'clip.png').exists()
    print(call(python, '-c', LIBRARY))


if __name__ == '__main__':
  main(str(pathlib.Path(sys.argv[1]).absolute()))
