"""What the README shows works as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from mira_jax import config
from mira_jax.cli import main


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


def test_every_command_of_the_documents_can_be_parsed(request):
  """With its flags, and fields that configurations have."""
  root, fields = request.config.rootpath, config.defaults()
  parser, found = main.whole_parser(), []
  for path in (root / 'README.md', *sorted((root / 'docs').glob('*.md'))):
    blocks = re.findall(r'```\w*\n(.*?)```', path.read_text(), re.DOTALL)
    text = '\n'.join(blocks).replace('\\\n', ' ')
    found += [
      (path.name, shlex.split(line, comments=True))
      for line in re.findall(r'^(?:\$ )?mira (.*)', text, re.M)
      if not re.search(r'\.\.\.|[$<>|{]|\b[A-Z]\|', line.split(' #')[0])
    ]
  assert len(found) > 60
  for name, words in found:
    try:
      _, rest = parser.parse_known_args(words)
    except SystemExit:
      pytest.fail(f'{name}: mira {" ".join(words)}')
    for flag in rest:
      field = re.match(r'--(?:no)?config\.([\w.]+)', flag)
      assert field, (name, words, flag)
      assert field[1] in fields, (name, words, flag)
