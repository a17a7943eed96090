"""What the README shows works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys


def test_the_python_of_the_readme_runs(request):
  text = (request.config.rootpath / 'README.md').read_text()
  (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  show = '\nprint(logits.shape, gain.shape, moved.sum(-1).round(3).min())'
  done = subprocess.run(
    [sys.executable, '-c', code + show],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.startswith('(2, 7) (2, 8) 1.0')
  assert not done.stderr


def test_every_file_of_the_readme_exists(request):
  root = request.config.rootpath
  text = (root / 'README.md').read_text()
  links = re.findall(r'\]\((?!http)([^)\s]+)\)', text)
  names = re.findall(r'`((?:mira_jax|configs|tests)/[\w/]*(?:\.py)?)`', text)
  assert links
  assert names
  for name in links + names:
    assert (root / name).exists(), name
