"""Unpacks the compiler of a platform that this machine does not have.

python tests/aot/install.py tpu FOLDER
python tests/aot/install.py cuda FOLDER
"""

from __future__ import annotations

import subprocess
import sys

from mira_jax.aot import compilers

if __name__ == '__main__':
  command = compilers.pip_command(*sys.argv[1:])
  sys.exit(subprocess.run([sys.executable, '-m', *command]).returncode)
