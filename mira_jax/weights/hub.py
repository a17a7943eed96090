"""Models of the Hugging Face Hub by address: hf://OWNER/NAME[@REVISION].

`huggingface_hub` (the extra `hub`) downloads them into its own cache, and obeys
HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import importlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from mira_jax import files
from mira_jax.errors import MiraInputError, checkpoint_error, short, some
from mira_jax.weights import huggingface

# A Path has one slash. Pull requests are the one kind of revision with slashes.
_ADDRESS = re.compile(
  r'hf://?(?P<repo>[\w.-]+/[\w.-]+)'
  r'(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<inside>.+))?'
)
_INDEX = '.index.json'
_SECONDS = 10  # until a hub that does not answer counts as unreachable


@dataclasses.dataclass(kw_only=True, frozen=True)
class Download:
  """Files of a repository, in the cache."""

  path: pathlib.Path  # the file with the tensors, or the index of their parts
  # JSON-able: 'repository', 'revision' (a commit), 'files' (name -> SHA-256),
  # and 'license' where its model card has one.
  about: dict[str, Any]
  notes: list[str]


def is_address(path: Any) -> bool:
  """Whether a path of weights is the address of a model of the hub."""
  return str(path).startswith('hf:/')


@functools.lru_cache
def fetch(
  address: str, candidates: Callable[[Sequence[str]], list[str]]
) -> Download:
  """Downloads the weights of a model, and the files that describe it.

  Within a process an address is always the same commit. Where the hub does not
  answer, the commit is that of the cache.

  Args:
    address: hf://OWNER/NAME[@REVISION][/FILE or /FOLDER].
    candidates: of the names of a folder those of weights.

  Raises:
    MiraInputError: `huggingface_hub` is missing ('no_hub'), or there is no such
      address, repository, revision or file, no access or no network.
  """
  repo, revision, inside = _parse(address)
  api = client(address)
  names, cached, known, notes = _listing(api, address, repo, revision)
  main = _choose(address, names, inside, candidates)
  used = _used(main, names)
  asked = {'revision': revision, 'allow_patterns': list(map(glob.escape, used))}
  folder = cached or pathlib.Path(
    call(address, api.snapshot_download, repo, **asked)
  )
  about = {
    'repository': repo,
    'revision': folder.name,
    'files': {n: _sha256(folder / n) for n in used if (folder / n).is_file()},
    **known,
  }
  return Download(path=folder / main, about=about, notes=notes)


def client(address: str) -> Any:
  """The `HfApi` of huggingface_hub; raises MiraInputError ('no_hub')."""
  # It would report versions of Python and of libraries with each request.
  os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
  try:
    hub = importlib.import_module('huggingface_hub')
  except ImportError as cause:
    hint = "huggingface_hub is not installed: pip install 'mira-jax[hub]'; or "
    hint += 'fetch the files otherwise and name their folder'
    raise MiraInputError('no_hub', address, hint) from cause
  return hub.HfApi(library_name='mira_jax')


def call(address: str, function: Callable, *args: Any, **options: Any) -> Any:
  """What a function of huggingface_hub returns; its errors become ours."""
  try:
    return function(*args, **options)
  except Exception as cause:
    if isinstance(cause, OSError) and cause.errno:  # of this disk
      raise
    raise _explain(address, cause) from cause


# ----- which files ------------------------------------------------------------


def _parse(address: str) -> tuple[str, str | None, str]:
  """Repository, revision (None: the main one), and a name within it."""
  match = _ADDRESS.fullmatch(address)
  if not match:
    hint = 'the address of a model is hf://OWNER/NAME or hf://OWNER/NAME@'
    hint += 'REVISION, with /FILE behind it where it has several'
    raise MiraInputError('bad_name', address, hint)
  revision = match['revision'] and urllib.parse.unquote(match['revision'])
  return match['repo'], revision, (match['inside'] or '').strip('/')


def _listing(
  api: Any, address: str, repo: str, revision: str | None
) -> tuple[list[str], pathlib.Path | None, dict[str, Any], list[str]]:
  """Names of files, the cache if no hub answers, more facts, and notes."""
  ask = functools.partial(api.model_info, repo, revision=revision)
  try:
    info = call(address, ask, timeout=_SECONDS)
  except MiraInputError as error:
    folder = error.code == 'no_network' and _cached(api, repo, revision)
    if not folder:
      raise
    found = [p.relative_to(folder) for p in folder.rglob('*') if p.is_file()]
    note = f'{error.hint}; revision {folder.name} of the cache is used'
    return sorted(x.as_posix() for x in found), folder, {}, [note]
  card = info.card_data or {}
  known = {'license': card['license']} if card.get('license') else {}
  names = sorted(sibling.rfilename for sibling in info.siblings or ())
  return names, None, known, []


def _cached(api: Any, repo: str, revision: str | None) -> pathlib.Path | None:
  """The folder of a revision in the cache."""
  errors = importlib.import_module('huggingface_hub.errors')
  # Without any file: else it would miss those that were never asked for.
  asked: dict[str, Any] = {'local_files_only': True, 'allow_patterns': []}
  try:
    found = api.snapshot_download(repo, revision=revision, **asked)
  except errors.LocalEntryNotFoundError:
    return None
  return pathlib.Path(found)


def _choose(
  address: str,
  names: Sequence[str],
  inside: str,
  candidates: Callable[[Sequence[str]], list[str]],
) -> str:
  """The file with the tensors; of several the one without a pickle."""
  if inside in names:
    return inside
  prefix = f'{inside}/' if inside else ''
  here = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
  found = candidates([n for n in here if '/' not in n])
  found = [n for n in found if n.endswith('.safetensors')] or found
  if not found:
    hint = f'no weights that are read here (docs/weights.md) lie in {inside}'
    hint = f'{hint or "it"}; its files are {some(names, 12) or "none"}'
    raise checkpoint_error('not_weights', address, hint)
  if len(found) > 1:
    hint = f'put the name of one behind the address: /{prefix}'
    hint += f', /{prefix}'.join(found[:12])
    raise checkpoint_error('several_weights', address, hint)
  return prefix + found[0]


def _used(main: str, names: Sequence[str]) -> list[str]:
  """The files that are read: the tensors, and those that describe them."""
  folder = main.removesuffix(pathlib.PurePosixPath(main).name)
  beside = {folder + name for name in huggingface.FILES}
  stem, dot, kind = main.removesuffix(_INDEX).rpartition('.')
  parts = re.compile(rf'{re.escape(stem)}-\d+-of-\d+{re.escape(dot + kind)}')
  whole = not main.endswith(_INDEX)
  return [
    n
    for n in names
    if n == main or n in beside or (not whole and parts.fullmatch(n))
  ]


def _sha256(file: pathlib.Path) -> str:
  """The SHA-256 of a file, which is the name that a large one has in the cache.

  Raises:
    MiraInputError: it is not, so that the file was changed ('damaged').
  """
  found, name = files.sha256(file), file.resolve().name
  if re.fullmatch('[0-9a-f]{64}', name) and name != found:
    hint = 'its content does not match its SHA-256; delete it, and the same '
    raise checkpoint_error(
      'damaged', file.resolve(), hint + 'command fetches it'
    )
  return found


# ----- errors -----------------------------------------------------------------


def _explain(address: str, cause: BaseException) -> MiraInputError:
  """The error for what huggingface_hub raised."""
  errors = importlib.import_module('huggingface_hub.errors')
  constants = importlib.import_module('huggingface_hub.constants')
  server, log_in = constants.ENDPOINT, 'log in with `hf auth login` or HF_TOKEN'
  # Of a file that is not in the cache: why it could not be fetched.
  if isinstance(cause, errors.LocalEntryNotFoundError):
    cause = cause.__cause__ or cause
  status = getattr(getattr(cause, 'response', None), 'status_code', None)
  if isinstance(cause, errors.HFValidationError):
    return MiraInputError('bad_name', address, 'the hub has no such names')
  if isinstance(cause, errors.GatedRepoError):
    hint = f'ask for access on its page at {server}, and {log_in}'
    return checkpoint_error('no_access', address, hint)
  if isinstance(cause, errors.RevisionNotFoundError):
    hint = 'it has no such revision; name a branch, a tag or a commit'
    return checkpoint_error('not_found', address, hint)
  if isinstance(cause, errors.RepositoryNotFoundError):
    hint = f'{server} has no such model; if it is private, {log_in}'
    return checkpoint_error('not_found', address, hint)
  if status in (401, 403):
    hint = f'{server} refuses access ({status}); {log_in}, with the right to '
    return checkpoint_error('no_access', address, f'{hint}read or write it')
  why = f'status {status}' if status else short(str(cause) or repr(cause), 120)
  hint = f'{server} does not answer as a hub does ({why})'
  if type(cause).__name__ == 'OfflineModeIsEnabled':
    hint = f'HF_HUB_OFFLINE is set (cache: {constants.HF_HUB_CACHE})'
  return checkpoint_error('no_network', address, hint)


# ----- upload -----------------------------------------------------------------


def upload(
  folder: str | os.PathLike[str],
  repo: str,
  *,
  revision: str | None = None,
  private: bool = False,
  replace_card: bool = False,
) -> tuple[str, bool]:
  """Commits the files of a folder to a repository, which is made if missing.

  Args:
    folder: with README.md, which is the model card.
    repo: OWNER/NAME.
    revision: a branch, made if missing; None is the main one.
    private: whether the repository must be seen by its owner alone.
    replace_card: whether to write over the model card that is there.

  Returns:
    The address of the commit, and whether the model card was written.

  Raises:
    MiraInputError: the repository is there and public, but `private` is asked
      ('exists'); or see `fetch`.
  """
  address = f'hf://{repo}'
  if _parse(address)[1:] != (None, ''):
    raise MiraInputError('bad_name', repo, 'give OWNER/NAME')
  api = client(address)
  run = functools.partial(call, address)
  run(api.create_repo, repo, private=private or None, exist_ok=True)
  if private and not run(api.model_info, repo, timeout=_SECONDS).private:
    hint = 'it is there already, and public; change that in its settings first'
    raise MiraInputError('exists', address, hint)
  if revision:
    run(api.create_branch, repo, branch=revision, exist_ok=True)
  there = run(api.file_exists, repo, 'README.md', revision=revision)
  writes = replace_card or not there
  commit = run(
    api.upload_folder,
    repo_id=repo,
    folder_path=folder,
    revision=revision,
    commit_message='Upload a model of mira_jax',
    ignore_patterns=[] if writes else ['README.md'],
  )
  return f'{address}@{commit.oid}', writes
