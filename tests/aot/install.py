"""Unpacks the compiler of a platform that this machine does not have.

python tests/aot/install.py tpu FOLDER
python tests/aot/install.py cuda FOLDER

For CUDA also the disassembler that bench/hopper.py needs, in FOLDER/nvdisasm:
beside the compiler jax would take it for a whole CUDA toolkit.
"""

from __future__ import annotations

import subprocess
import sys

from mira_jax.aot import compilers

if __name__ == '__main__':
  platform, folder = sys.argv[1:]
  command = [sys.executable, '-m', *compilers.pip_command(platform, folder)]
  subprocess.run(command, check=True)
  if platform == 'cuda':
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--upgrade']
    target = ['--target', f'{folder}/nvdisasm', 'nvidia-cuda-nvdisasm==13.*']
    subprocess.run([*pip, '--no-deps', *target], check=True)
