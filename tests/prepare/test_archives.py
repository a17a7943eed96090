"""Unpacking archives: harmless, hostile and damaged ones."""

from __future__ import annotations

import io
import os
import pathlib
import stat
import tarfile
import zipfile
import zlib

import pytest

from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.prepare import archives

FILES = {
  'happy/1.mp4': os.urandom(3000),
  'happy/2.mp4': os.urandom(5),
  'sad/空.mp4': b'',
}


@pytest.fixture
def out(tmp_path) -> pathlib.Path:
  return tmp_path / 'place' / 'out'


def _zip(path: pathlib.Path, files=FILES, method=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, 'w', method) as file:
    for name, data in files.items():
      file.writestr(name, data)
  return path


def _tar(path: pathlib.Path, files=FILES, mode='w', *, extra=()):
  with tarfile.open(path, mode) as file:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      file.addfile(info, io.BytesIO(data))
    for info in extra:
      file.addfile(info)
  return path


def _tree(root: pathlib.Path) -> dict[str, bytes]:
  """All files below a folder."""
  files = (path for path in root.rglob('*') if path.is_file())
  return {str(path.relative_to(root)): path.read_bytes() for path in files}


def _refused(path, out, code) -> str:
  """The hint of the error; nothing is written beside `out`."""

  def beside() -> dict[str, bytes]:
    found = _tree(out.parents[1])
    return {k: v for k, v in found.items() if not k.startswith('place/out/')}

  before = beside()
  with pytest.raises(MiraInputError) as caught:
    archives.unpack(path, out)
  assert beside() == before
  assert (caught.value.code, caught.value.exit_code) == (code, ExitCode.DATA)
  return caught.value.hint


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:xz', 'zip'])
def test_archives_are_unpacked_and_resumed(tmp_path, out, mode):
  path = tmp_path / 'clips'
  _zip(path) if mode == 'zip' else _tar(path, mode=mode)
  assert archives.unpack(path, out) == (3, 0)
  assert _tree(out) == FILES
  os.truncate(out / 'happy/1.mp4', 99)  # a run that was killed
  assert archives.unpack(path, out) == (1, 2)
  assert _tree(out) == FILES


def test_folders_finder_files_and_modes(tmp_path, out):
  finder = ('__MACOSX/._1.mp4', 'happy/.DS_Store', 'happy/._1.mp4')
  files = {'empty/': b'', './happy/1.mp4': b'1', **dict.fromkeys(finder, b'')}
  archives.unpack(_zip(tmp_path / 'a.zip', files), out)
  assert _tree(out) == {'happy/1.mp4': b'1'}
  assert (out / 'empty').is_dir()
  info = tarfile.TarInfo('run.sh')
  info.mode = 0o6777
  archives.unpack(_tar(tmp_path / 'a.tar', extra=[info]), out)
  assert not (out / 'run.sh').stat().st_mode & 0o6022


def test_names_in_another_encoding(tmp_path, out):
  name, path = '高兴/李明.mp4', tmp_path / 'a'
  raw = name.encode('gb18030')
  _zip(path, {'x' * len(raw): b''})
  path.write_bytes(path.read_bytes().replace(b'x' * len(raw), raw))
  assert 'gb18030' in _refused(path, out, 'bad_encoding')
  archives.unpack(path, out / 'zip', encoding='gb18030')
  with tarfile.open(
    path, 'w', format=tarfile.GNU_FORMAT, encoding='gb18030'
  ) as file:
    file.addfile(tarfile.TarInfo(name))
  assert 'gb18030' in _refused(path, out, 'bad_encoding')
  archives.unpack(path, out / 'tar', encoding='gb18030')
  assert {*_tree(out)} == {f'zip/{name}', f'tar/{name}'}


@pytest.mark.parametrize(
  'name', ['a/../../evil', '/tmp/evil', 'C:/evil', '..\\evil']
)
@pytest.mark.parametrize('make', [_zip, _tar])
def test_names_that_lead_outside(tmp_path, out, make, name):
  path = make(tmp_path / 'a', {'1': b'1', name: b'evil'})
  assert repr(name) in _refused(path, out, 'unsafe_archive')
  assert make is _tar or not out.exists()  # a zip is refused by its index


def test_a_nul_hides_no_suffix(tmp_path, out):
  path = _zip(tmp_path / 'a.zip', {'goodx.mp4': b'1'})
  path.write_bytes(path.read_bytes().replace(b'goodx', b'good\0'))
  _refused(path, out, 'unsafe_archive')


@pytest.mark.parametrize('kind', ['LNK', 'CHR'])
def test_links_and_devices(tmp_path, out, kind):
  info = zipfile.ZipInfo('link')
  info.external_attr = (getattr(stat, f'S_IF{kind}') | 0o777) << 16
  path = _zip(tmp_path / 'a.zip', {'1': b'1', info: b'/etc'})
  _refused(path, out, 'unsafe_archive')
  assert not out.exists()
  member = tarfile.TarInfo('link')
  member.type, member.linkname = getattr(tarfile, f'{kind}TYPE'), 'happy/1.mp4'
  path = _tar(tmp_path / 'a.tar', extra=[member])
  _refused(path, out, 'unsafe_archive')
  assert not (out / 'link').exists()


@pytest.mark.parametrize('make', [_zip, _tar])
def test_links_that_were_there_are_not_followed(tmp_path, out, make):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'mine').write_bytes(b'mine')
  path = make(tmp_path / 'a')
  out.mkdir(parents=True)
  (out / 'happy').symlink_to(tmp_path / 'elsewhere')
  _refused(path, out, 'unsafe_archive')
  (out / 'happy').unlink()
  (out / 'happy').mkdir()
  (out / 'happy/1.mp4').symlink_to(tmp_path / 'mine')
  _refused(path, out, 'unsafe_archive')


def test_a_repeated_name(tmp_path, out):
  path = _zip(tmp_path / 'x', {'a/1.mp4': b'one', 'a/./1.mp4': b'two'})
  assert 'twice' in _refused(path, out, 'unsafe_archive')


@pytest.mark.parametrize('mode', ['w:gz', 'zip'])
def test_bombs(tmp_path, out, mode, monkeypatch):
  path, files = tmp_path / 'a', {f'{i}': bytes(900_000) for i in range(4)}
  _zip(path, files) if mode == 'zip' else _tar(path, files, mode)
  assert 'bomb' in _refused(path, out, 'unsafe_archive')
  _zip(path, {'1': bytes(1 << 20)})  # small enough
  assert archives.unpack(path, out / 'small') == (1, 0)
  monkeypatch.setattr(archives, 'MAX_MEMBERS', 2)
  _zip(path) if mode == 'zip' else _tar(path, mode=mode)
  assert '3 members' in _refused(path, out, 'unsafe_archive')


def test_headers_of_a_tar_that_would_fill_memory_or_disk(tmp_path, out):
  info = tarfile.TarInfo('1')
  info.pax_headers = {'comment': os.urandom(1 << 20).hex()}
  path = _tar(tmp_path / 'a.tar', {}, extra=[info])
  assert 'header' in _refused(path, out, 'bad_archive')
  info.pax_headers = {'GNU.sparse.map': '0,0', 'GNU.sparse.size': str(1 << 40)}
  path = _tar(tmp_path / 'a.tar', extra=[info])
  assert 'sparse' in _refused(path, out, 'unsafe_archive')


def test_a_wrong_checksum(tmp_path, out):
  path = _zip(tmp_path / 'a.zip')
  data = bytearray(path.read_bytes())
  data[1000] ^= 1
  path.write_bytes(data)
  assert 'happy/1.mp4' in _refused(path, out, 'bad_archive')


def test_names_and_lengths_that_no_disk_can_have(tmp_path, out):
  for names in (('x', 'x/y'), ('y' * 300,)):
    path = _zip(tmp_path / 'a.zip', dict.fromkeys(names, b''))
    assert _refused(path, out, 'bad_archive')
  extended = tarfile.TarInfo('x')
  extended.type, extended.size = tarfile.XHDTYPE, 512
  records = b'99999999999999999999 a=b\n'.ljust(512, b'\0')
  (tmp_path / 'a.tar').write_bytes(extended.tobuf() + records + bytes(1024))
  assert _refused(tmp_path / 'a.tar', out, 'bad_archive')


def test_a_damaged_tar_is_no_short_one(tmp_path, out):
  path = _tar(tmp_path / 'a.tar')
  data = bytearray(path.read_bytes())
  second = data.index(b'happy/2.mp4')
  data[second] ^= 1
  path.write_bytes(data)
  _refused(path, out, 'bad_archive')
  path.write_bytes(data[:second])  # cut where a member ends
  _refused(path, out, 'bad_archive')
  data = bytearray(_tar(path, mode='w:gz').read_bytes())
  data[-6] ^= 1  # in the checksum
  path.write_bytes(data)
  _refused(path, out, 'bad_archive')


@pytest.mark.parametrize(
  'data',
  [
    *(b'', b'Rar!\x1a\7', zlib.compress(b'a,b\n' * 9, wbits=31)),
    tarfile.TarInfo('1').tobuf()[:99],
  ],
)
def test_other_files(tmp_path, out, data):
  (tmp_path / 'a.zip').write_bytes(data)
  assert '7-Zip' in _refused(tmp_path / 'a.zip', out, 'bad_archive')


def test_other_kinds_of_zip_are_left_to_7_zip(tmp_path, out):
  path = _zip(tmp_path / 'a.zip')
  data = bytearray(path.read_bytes())
  for mark, offset in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
    data[data.index(mark) + offset] |= 1  # encrypted
  path.write_bytes(data)
  assert 'encrypted' in _refused(path, out, 'bad_archive')
  _zip(path, method=zipfile.ZIP_LZMA)
  assert 'method 14' in _refused(path, out, 'bad_archive')


def test_the_command(capsys, tmp_path, out):
  paths = [_zip(tmp_path / 'a.zip'), _tar(tmp_path / 'b.tar', {'b': b'b'})]
  assert cli.main(['unpack', *map(str, paths), f'--out={out}']) == ExitCode.OK
  text, err = capsys.readouterr()
  assert err == ''  # the bar is for terminals
  assert 'a.zip: 3 files unpacked, 0 skipped\n' in text
  _zip(paths[0], {'../\x1b[2Jevil': b''})
  code = cli.main(['unpack', str(paths[0]), f'--out={out}'])
  text, err = capsys.readouterr()
  assert (code, text, err.count('\n')) == (ExitCode.DATA, '', 1)
  assert 'unsafe_archive' in err
  assert '\x1b' not in err
  assert cli.main(['unpack', 'none.zip', f'--out={out}']) == ExitCode.USAGE
