"""Error codes: one table, which the code and docs/errors.md agree with."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

import runs
from mira_jax import errors, files, terminal
from mira_jax.errors import CODES, ExitCode, MiraInputError

ROOT = pathlib.Path(__file__).parents[1]
# Functions that make an error of a code, with its exit code.
MAKERS = {
  'MiraInputError': ExitCode.USAGE,
  'data_error': ExitCode.DATA,
  'checkpoint_error': ExitCode.CHECKPOINT,
}


def raised():
  """Place, code and exit code (None: it is computed) of errors in the code."""
  for path in sorted((ROOT / 'mira_jax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
      if not isinstance(node, ast.Call) or not node.args:
        continue
      name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
      code = getattr(node.args[0], 'value', None)
      if name not in MAKERS or not isinstance(code, str):
        continue
      exits = [x.value for x in node.keywords if x.arg == 'exit_code']
      found = MAKERS[name]
      if exits:
        found = ExitCode.__members__.get(getattr(exits[0], 'attr', ''))
      yield f'{path.name}:{node.lineno}', code, found


def test_every_code_is_in_the_table_with_its_exit_code():
  found = list(raised())
  assert len(found) > 200
  for place, code, exit_code in found:
    assert code in CODES, place
    assert exit_code is None or exit_code in CODES[code], place
  files = [p.read_text('utf-8') for p in (ROOT / 'mira_jax').rglob('*.py')]
  text = ''.join(x for x in files if 'CODES: dict' not in x)
  assert [code for code in CODES if f"'{code}'" not in text] == []


def test_the_document_lists_every_code_with_its_exit_code():
  text = (ROOT / 'docs' / 'errors.md').read_text('utf-8')
  table = re.findall(r'^\| `(\w+)` \| ([\d, ]+) \|', text, re.M)
  listed = {code: tuple(map(int, exits.split(', '))) for code, exits in table}
  assert listed == {code: tuple(map(int, x)) for code, x in CODES.items()}
  assert list(listed) == sorted(listed)


def test_a_full_disk_has_one_code_and_one_exit_code(tmp_path, capsys):
  def full():
    with runs.file_limit(100), (tmp_path / 'x').open('wb') as file:
      file.write(bytes(1000))

  assert terminal.run('mira', full) == ExitCode.NOT_WRITTEN
  assert capsys.readouterr().err.startswith('mira: not_written: ')
  (tmp_path / 'file').write_text('')

  def hold():
    with files.lock(tmp_path / 'file' / '.lock'):
      pass

  for write in (lambda: files.open_folder(tmp_path / 'file' / 'x'), hold):
    with pytest.raises(MiraInputError) as caught:
      write()
    assert caught.value.code == 'not_written'
    assert caught.value.exit_code == ExitCode.NOT_WRITTEN
  assert errors.not_written('x', 'y').exit_code == ExitCode.NOT_WRITTEN
