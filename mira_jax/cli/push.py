"""Publish the weights of a finished run on the Hugging Face Hub.

  mira push RUN OWNER/NAME [--private] [--revision BRANCH] [--license NAME]
  mira push RUN OWNER/NAME --to DIR

Uploads a model card (README.md) with the test results, model.safetensors and
config.json without the paths of this machine; no clips, pictures or logs.
--to writes these files into a folder instead, to be read first. RUN may be a
weights file, too. `hf auth login` or HF_TOKEN says who you are.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import tempfile

from mira_jax import config, files, terminal
from mira_jax.cli import model_card
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.inference import load
from mira_jax.train import run_folder
from mira_jax.weights import hub, sources

CARD, WEIGHTS = 'README.md', 'model.safetensors'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the run, the repository and who may see it."""
  add = parser.add_argument
  add('run_folder', metavar='RUN')
  add('repository', metavar='OWNER/NAME')
  add('--private', action='store_true', help='only its owner may see it')
  add('--revision', metavar='BRANCH', help='made if missing (default: main)')
  licence = 'of the weights, as the hub names it (default: that of the model '
  licence += 'they started from, if known, else unknown)'
  add('--license', metavar='NAME', help=licence)
  add('--to', metavar='DIR', help='write the files there, upload nothing')
  force = 'write over the model card, or the files of DIR, that are there'
  add('--force', action='store_true', help=force)


def run(args: argparse.Namespace) -> int:
  """Writes the files, and uploads them."""
  repo = args.repository
  hub.client(f'hf://{repo}')
  source = _read(args.run_folder)
  if args.to:
    folder = files.open_folder(args.to)
    names = (CARD, WEIGHTS, run_folder.CONFIG)
    there = [folder / name for name in names if (folder / name).exists()]
    if there and not args.force:
      hint = 'it is there already; another folder, or --force'
      raise MiraInputError('exists', there[0], hint)
    _write(folder, source, args)
    with files.atomic(folder / WEIGHTS) as part:
      shutil.copyfile(source.path, part)
    terminal.say(f'files: {folder}')
    return ExitCode.OK
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    _write(folder, source, args)
    (folder / WEIGHTS).symlink_to(source.path.resolve())
    address, written = hub.upload(
      folder,
      repo,
      revision=args.revision,
      private=args.private,
      replace_card=args.force,
    )
  if not written:
    terminal.say('the model card that is there is kept; --force replaces it')
  terminal.say(f'pushed: {address}')
  return ExitCode.OK


def _read(path: str) -> sources.Source:
  """The weights, checked."""
  if os.path.isdir(path) and not sources.weights_path(path).is_file():
    raise load.not_finished(path)
  source = sources.read(path)
  if not source.native:
    hint = 'it is not of this package; mira convert it, and push the result'
    raise checkpoint_error('not_weights', path, hint)
  return source


def _write(
  folder: pathlib.Path, source: sources.Source, args: argparse.Namespace
) -> None:
  """Writes the card and the configuration."""
  files.write_text(
    folder / CARD, model_card.write(source, args.repository, args.license)
  )
  text = _configuration(source)
  files.write_text(folder / run_folder.CONFIG, text)


def _configuration(source: sources.Source) -> str:
  """config.json of the run, with names in place of paths; else the model's."""
  metadata, beside = source.metadata, source.path.parent
  if not (beside / run_folder.CONFIG).is_file():
    groups = ('model', 'pretrain', 'preprocessing')
    return json.dumps({n: metadata.get(n) for n in groups}, indent=2) + '\n'
  cfg = run_folder.read_config(beside)
  cfg.data.dataset = ','.join(model_card.datasets(metadata))
  if not hub.is_address(cfg.train.init_from):
    cfg.train.init_from = pathlib.Path(cfg.train.init_from).name
  return config.to_json(cfg)
