"""Unpacks the compiler of a platform that this machine does not have.

  python tests/aot/install.py tpu FOLDER
  python tests/aot/install.py cuda FOLDER

See `mira_jax.aot.compilers`.
"""

from __future__ import annotations

import sys

from mira_jax.aot import compilers

if __name__ == '__main__':
  compilers.install(*sys.argv[1:])
