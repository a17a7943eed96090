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
import re
import shutil
import tempfile
from typing import Any

from mira_jax import config, files, terminal
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.evaluation import results
from mira_jax.inference import load
from mira_jax.train import run_folder
from mira_jax.weights import hub, sources

CARD, WEIGHTS = 'README.md', 'model.safetensors'
_METRICS = {'war': ('accuracy', 'WAR'), 'uar': ('recall', 'UAR'),
            'macro_f1': ('f1', 'macro F1')}  # fmt: skip


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
  files.write_text(folder / CARD, _card(source, args))
  text = _configuration(source)
  files.write_text(folder / run_folder.CONFIG, text)


def _configuration(source: sources.Source) -> str:
  """config.json of the run, with names in place of paths; else the model's."""
  metadata, beside = source.metadata, source.path.parent
  if not (beside / run_folder.CONFIG).is_file():
    groups = ('model', 'pretrain', 'preprocessing')
    return json.dumps({n: metadata.get(n) for n in groups}, indent=2) + '\n'
  cfg = run_folder.read_config(beside)
  cfg.data.dataset = ','.join(_datasets(metadata))
  if not hub.is_address(cfg.train.init_from):
    cfg.train.init_from = pathlib.Path(cfg.train.init_from).name
  return config.to_json(cfg)


# ----- the model card ---------------------------------------------------------


def _card(source: sources.Source, args: argparse.Namespace) -> str:
  """The model card: YAML for the hub, and text for people."""
  from huggingface_hub import (  # pyright: ignore[reportMissingImports]
    EvalResult,
    ModelCardData,
  )

  metadata, name = source.metadata, args.repository.rpartition('/')[2]
  dataset = ' + '.join(_datasets(metadata))
  classifies = load.is_classifier(metadata)
  scores = _scores(source)
  found = [
    EvalResult(
      task_type='video-classification',
      dataset_type=re.sub(r'\W+', '-', dataset.lower()),
      dataset_name=dataset,
      metric_type=kind,
      metric_name=label,
      metric_value=round(scores[key], 4),
    )
    for key, (kind, label) in _METRICS.items()
    if key in scores
  ]
  origin = _origin(metadata)
  data = ModelCardData(
    license=args.license or origin.get('license') or 'unknown',
    library_name='mira_jax',
    pipeline_tag='video-classification' if classifies else None,
    tags=['jax', 'mira', 'facial-expression-recognition'],
    base_model=origin.get('repository'),
    model_name=name if found else None,
    eval_results=found or None,
  )
  parts = [f'---\n{data.to_yaml()}\n---\n\n# {name}', *_text(source, args)]
  return '\n\n'.join(parts) + '\n'


def _text(source: sources.Source, args: argparse.Namespace) -> list[str]:
  """The paragraphs of the card."""
  metadata, scores = source.metadata, _scores(source)
  model, rules = metadata['model'], metadata['preprocessing']
  mira = model.get('mira')
  rows = {
    'classes': ', '.join(metadata['class_names']),
    'model': '{depth} blocks of width {dim}, {heads} heads'.format(**model),
    'MiRA': mira['mode'] if mira else 'none',
    'clips': '{frames} frames of {image_size} pixels, '.format(**model)
    + f'one of {rules["rate"]}, {rules["fit"]}',
    'trained on': ' + '.join(_datasets(metadata)),
    'started from': _origin(metadata).get('address', ''),
    **{label: f'{100 * scores[key]:.2f} %' for key, (_, label) in
       _METRICS.items() if key in scores},
  }  # fmt: skip
  table = ['| | |', '|---|---|']
  table += [f'| {n} | {_cell(x)} |' for n, x in rows.items() if x]
  address = f'hf://{args.repository}'
  use = f'mira predict CLIP --weights {address}'
  if not load.is_classifier(metadata):
    use = f'mira train --config.train.init_from={address} ...'
  return [
    'A video transformer for faces, trained with mira_jax.',
    '\n'.join(table),
    *(['Results are those of the test clips.'] if scores else []),
    f"```\npip install 'mira-jax[hub]'\n{use}\n```",
    'For research on faces in video. An expression is not a feeling: the model '
    'names what a face shows, by the labels that it was trained with. Have the '
    'consent of the people in your clips, and measure the errors for each '
    'group of people concerned before relying on anything. In the European '
    'Union, inferring emotions at work or in education is prohibited (AI Act, '
    'Article 5(1)(f)).',
  ]


def _cell(text: str) -> str:
  return text.replace('|', r'\|').replace('\n', ' ')


def _scores(source: sources.Source) -> dict[str, float]:
  """Test scores of the weights; {} where there are none."""
  found = results.read(source.path.parent)
  step = source.metadata.get('step')
  rows = [row for row in found if row.step == step]
  return {n: getattr(rows[0].scores, n) for n in _METRICS} if rows else {}


def _datasets(metadata: dict[str, Any]) -> list[str]:
  rows = metadata.get('datasets')
  rows = rows if isinstance(rows, list) else []
  return [str(row.get('name')) for row in rows if isinstance(row, dict)]


def _origin(metadata: dict[str, Any]) -> dict[str, str]:
  """The model of the hub that it started from: its name, address, licence."""
  about: Any = metadata.get('source')
  about = about.get('hub') if isinstance(about, dict) else None
  if not isinstance(about, dict):
    return {}
  repo, revision = about.get('repository'), about.get('revision')
  found = {'repository': str(repo), 'license': str(about.get('license') or '')}
  return found | {'address': f'hf://{repo}@{revision}'}
