"""A hub on this machine: its cache on disk, and a server with its API.

Routes and headers are those that the huggingface_hub client uses. Large files
are on another host (localhost), as the hub's are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse

import pytest

from mira_jax.weights import hub as addresses

TOKEN = 'hf_of_a_test'


def cached(cache, repo, folder, *, commit='c' * 40, ref='main'):
  """The files of a folder as the cache holds them; returns the snapshot."""
  root = pathlib.Path(cache) / f'models--{repo.replace("/", "--")}'
  snapshot = root / 'snapshots' / commit
  for place in (snapshot, root / 'blobs', root / 'refs'):
    place.mkdir(parents=True, exist_ok=True)
  (root / 'refs' / ref).write_text(commit)
  for file in pathlib.Path(folder).iterdir():
    name = hashlib.sha256(file.read_bytes()).hexdigest()
    (root / 'blobs' / name).write_bytes(file.read_bytes())
    (snapshot / file.name).symlink_to(f'../../blobs/{name}')
  return snapshot


class Repository:
  """The commits of a model: name -> bytes, and what its branches are."""

  def __init__(self, files, license='', private=False, gated=False):
    self.license, self.private, self.gated = license, private, gated
    self.commits, self.branches = {}, {}
    self.commit('main', files)

  def commit(self, branch, files):
    files = self.commits.get(self.branches.get(branch), {}) | files
    digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    self.commits[digest], self.branches[branch] = files, digest
    return digest


class Handler(http.server.BaseHTTPRequestHandler):
  server: LocalHub

  def log_message(self, *_):
    pass

  def answer(self, body=b'', status=200, **headers):
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
      headers['Content-Type'] = 'application/json'
    self.send_response(status)
    for name, value in ({'Content-Length': len(body)} | headers).items():
      self.send_header(name.replace('_', '-'), str(value))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def refuse(self, status, code):
    self.answer({'error': code}, status, X_Error_Code=code)

  def do_GET(self):
    hub = self.server
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    hub.requests.append(f'{self.command} {path}')
    if hub.broken:
      return self.answer(b'<html>', hub.broken)
    if path.startswith('/cdn/'):
      assert 'Authorization' not in self.headers
      return self.answer(hub.blobs[path.removeprefix('/cdn/')])
    match = re.fullmatch(
      r'(/api/models)?/([^/]+/[^/]+)(?:/(revision|tree|resolve)/(.*))?', path
    )
    signed = self.headers.get('Authorization') == f'Bearer {TOKEN}'
    repo = match and hub.repos.get(match[2])
    if repo is None or (repo.private and not signed):
      return self.refuse(401, 'RepoNotFound')
    revision, _, name = (match[4] or 'main').partition('/')
    if revision == 'refs':
      revision, name = match[4], ''
    commit = repo.branches.get(revision, revision)
    if commit not in repo.commits:
      return self.refuse(404, 'RevisionNotFound')
    if repo.gated and not signed and match[3] == 'resolve':
      return self.refuse(403, 'GatedRepo')
    return self.give(repo, match[3], match[2], commit, name)

  do_HEAD = do_GET

  def give(self, repo, kind, name, commit, file):
    files = repo.commits[commit]
    if kind == 'tree':
      return self.answer([self.entry(n, x) for n, x in files.items()])
    if kind != 'resolve':
      siblings = [{'rfilename': n} for n in files]
      about = {'id': name, 'sha': commit, 'siblings': siblings, 'tags': []}
      about |= {'private': repo.private, 'cardData': {'license': repo.license}}
      return self.answer(about)
    if file not in files:
      return self.refuse(404, 'EntryNotFound')
    entry = self.entry(file, files[file])
    headers = {'X_Repo_Commit': commit, 'ETag': f'"{entry["oid"]}"'}
    if 'lfs' not in entry:
      return self.answer(files[file], **headers)
    sha256 = entry['lfs']['oid']
    self.server.blobs[sha256] = files[file]
    port = self.server.server_address[1]
    return self.answer(
      b'',
      302,
      Location=f'http://localhost:{port}/cdn/{sha256}',
      X_Linked_Etag=f'"{sha256}"',
      X_Linked_Size=len(files[file]),
      **headers,
    )

  def entry(self, name, data):
    blob = f'blob {len(data)}\0'.encode() + data
    found = {'type': 'file', 'path': name, 'size': len(data)}
    found['oid'] = hashlib.sha1(blob).hexdigest()
    if name.endswith(('.safetensors', '.bin')):
      sha256 = hashlib.sha256(data).hexdigest()
      found['lfs'] = {'oid': sha256, 'size': len(data), 'pointerSize': 130}
    return found

  # ----- what `mira push` sends -----

  def body(self):
    return self.rfile.read(int(self.headers.get('Content-Length') or 0))

  def do_PUT(self):
    data = self.body()
    oid = self.path.rpartition('/')[2]
    assert hashlib.sha256(data).hexdigest() == oid
    self.server.blobs[oid] = data
    self.answer()

  def do_POST(self):
    hub, path, data = self.server, urllib.parse.unquote(self.path), self.body()
    path = path.partition('?')[0]
    hub.requests.append(f'POST {path}')
    if path == '/api/validate-yaml':
      hub.cards.append(json.loads(data)['content'])
      return self.answer({'errors': [], 'warnings': []})
    if self.headers.get('Authorization') != f'Bearer {TOKEN}':
      return self.answer({'error': 'log in'}, 401)
    if path == '/api/repos/create':
      return self.create(json.loads(data))
    if path.endswith('/info/lfs/objects/batch'):
      url = f'http://127.0.0.1:{hub.server_address[1]}/lfs/'
      objects = [
        x | {'actions': {'upload': {'href': url + x['oid']}}}
        for x in json.loads(data)['objects']
      ]
      return self.answer({'transfer': 'basic', 'objects': objects})
    match = re.fullmatch(r'/api/models/([^/]+/[^/]+)/(\w+)/(.+)', path)
    repo, action, branch = hub.repos[match[1]], match[2], match[3]
    if action == 'branch':
      repo.branches.setdefault(branch, repo.branches['main'])
      return self.answer()
    if action == 'preupload':
      modes = [
        {
          'path': x['path'],
          'uploadMode': 'lfs' if x['path'].endswith('tensors') else 'regular',
          'shouldIgnore': False,
        }
        for x in json.loads(data)['files']
      ]
      return self.answer({'files': modes})
    assert action == 'commit'
    return self.commit(match[1], branch, map(json.loads, data.splitlines()))

  def create(self, asked):
    hub, name = self.server, f'{asked["organization"]}/{asked["name"]}'
    url = f'{hub.url}/{name}'
    if name in hub.repos:
      return self.answer({'error': 'it exists', 'url': url}, 409)
    private = asked.get('private') or asked.get('visibility') == 'private'
    hub.repos[name] = Repository({}, private=bool(private))
    return self.answer({'url': url, 'name': name})

  def commit(self, name, branch, rows):
    hub, files = self.server, {}
    for row in rows:
      value = row['value']
      if row['key'] == 'file':
        files[value['path']] = base64.b64decode(value['content'])
      elif row['key'] == 'lfsFile':
        files[value['path']] = hub.blobs[value['oid']]
    commit = hub.repos[name].commit(branch, files)
    url = f'{hub.url}/{name}/commit/{commit}'
    self.answer({'success': True, 'commitOid': commit, 'commitUrl': url})


class LocalHub(http.server.ThreadingHTTPServer):
  """The server; `repos` holds its models by name."""

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.server_address[1]}'
    self.repos: dict[str, Repository] = {}
    self.blobs, self.requests, self.cards = {}, [], []
    self.broken = 0  # a status that it answers everything with

  def add(self, name, folder, **about):
    """Adds a model with the files of a folder; returns its commit."""
    files = {x.name: x.read_bytes() for x in pathlib.Path(folder).iterdir()}
    self.repos[name] = Repository(files, **about)
    return self.repos[name].branches['main']


@contextlib.contextmanager
def serving():
  hub = LocalHub()
  thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield hub
  finally:
    hub.shutdown()
    thread.join()
    hub.server_close()


def use(monkeypatch, cache, url='http://127.0.0.1:1', offline=False):
  """Points huggingface_hub to a cache and a server, as its variables do.

  It reads them when it is imported, which another test may have done.
  """
  constants = pytest.importorskip('huggingface_hub.constants')
  for name, value in {
    'ENDPOINT': url,
    'HUGGINGFACE_CO_URL_TEMPLATE': url
    + '/{repo_id}/resolve/{revision}/{filename}',
    'HF_HUB_CACHE': str(cache),
    'HF_HUB_OFFLINE': offline,
    'HF_HUB_DISABLE_XET': True,
    'HF_TOKEN_PATH': str(cache / 'token'),
    'HF_STORED_TOKENS_PATH': str(cache / 'stored_tokens'),
  }.items():
    monkeypatch.setattr(constants, name, value)
  monkeypatch.delenv('HF_TOKEN', raising=False)
  monkeypatch.setenv('NO_PROXY', '*')
  addresses.fetch.cache_clear()
