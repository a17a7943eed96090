"""Changes exports, and expects commands to refuse them."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import pytest

from mira_jax import files
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode
from mira_jax.inference import exported

PACKAGES = ('openvino', 'onnxruntime', 'onnx', 'jax2onnx')
needs_cpu = pytest.mark.skipif(
  not all(map(importlib.util.find_spec, PACKAGES)), reason='the extra cpu'
)


def change_card(folder: pathlib.Path, **changes) -> None:
  """Writes a card anew, with a seal that fits."""
  card = json.loads((folder / exported.CARD).read_text()) | changes
  card[exported.SEAL] = exported.seal(card)
  (folder / exported.CARD).write_text(json.dumps(card))


def reseal(folder: pathlib.Path, name: str, content: bytes) -> None:
  """Puts a file into an export, whose card then fits."""
  (folder / name).write_bytes(content)
  card = json.loads((folder / exported.CARD).read_text())
  digest = files.sha256(folder / name)
  change_card(folder, files=card['files'] | {name: digest})


def fails(capsys: pytest.CaptureFixture, *args) -> tuple[int, str]:
  """The exit code and the one line of a command that fails."""
  code = cli.main(list(map(str, args)))
  err = capsys.readouterr().err
  assert code != ExitCode.OK
  assert err.count('\n') == 1
  assert 'Traceback' not in err
  return code, err


def refused(capsys: pytest.CaptureFixture, folder: pathlib.Path, word: str):
  """Verifies an export, which fails with exit code CHECKPOINT."""
  code, err = fails(capsys, 'verify', folder)
  assert code == ExitCode.CHECKPOINT
  assert word in err
