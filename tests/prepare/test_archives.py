"""Unpacking archives, harmless ones and others."""

from __future__ import annotations

import errno
import getpass
import io
import os
import pathlib
import shutil
import stat
import struct
import tarfile
import warnings
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
def out(tmp_path):
  """Where to unpack; beside it nothing may be written, see `_tree`."""
  return tmp_path / 'place' / 'out'


def _zip(path: pathlib.Path, files=FILES, method=zipfile.ZIP_DEFLATED):
  path.parent.mkdir(parents=True, exist_ok=True)
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


def _cut(path: pathlib.Path, names: list[str]) -> list[pathlib.Path]:
  """Cuts a file into pieces of these names, and removes it."""
  data, step = path.read_bytes(), -(-path.stat().st_size // len(names))
  pieces = [path.with_name(name) for name in names]
  for index, piece in enumerate(pieces):
    piece.write_bytes(data[index * step : (index + 1) * step])
  path.unlink()
  return pieces


def _tree(root: pathlib.Path) -> dict[str, bytes]:
  """All files below a folder."""
  files = (path for path in root.rglob('*') if path.is_file())
  return {str(path.relative_to(root)): path.read_bytes() for path in files}


def _refused(path, out, code, *, ask=None) -> MiraInputError:
  """The error; nothing may have been written but below `out`."""
  place = out.parents[1]
  before = {k: v for k, v in _tree(place).items() if not _below(k, out)}
  with pytest.raises(MiraInputError) as caught:
    archives.unpack([path], out, ask=ask)
  after = {k: v for k, v in _tree(place).items() if not _below(k, out)}
  assert after == before
  assert not list(out.rglob('*' + archives.PART_SUFFIX))
  assert caught.value.code == code
  assert caught.value.exit_code == ExitCode.DATA
  return caught.value


def _below(name: str, out: pathlib.Path) -> bool:
  return (out.parents[1] / name).is_relative_to(out)


# What is unpacked.


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_tar(tmp_path, out, mode):
  path = _tar(tmp_path / f'clips.tar{mode[1:].replace(":", ".")}', mode=mode)
  summary = archives.unpack([path], out)
  assert _tree(out) == FILES
  assert summary == archives.Summary(files=3, size=3005, skipped=0)


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path, out, method):
  path = _zip(tmp_path / 'clips.zip', method=method)
  assert archives.unpack([path], out).files == 3
  assert _tree(out) == FILES
  assert archives.unpack([path], out) == archives.Summary(skipped=3)


def test_files_are_plain(tmp_path, out):
  info = tarfile.TarInfo('run.sh')
  info.mode = 0o6777
  archives.unpack([_tar(tmp_path / 'a.tar', extra=[info])], out)
  assert not (out / 'run.sh').stat().st_mode & 0o6111


def test_folders_and_rubbish(tmp_path, out):
  rubbish = ('__MACOSX/._1.mp4', 'happy/.DS_Store', 'happy/._1.mp4')
  files = {'empty/': b'', './happy/1.mp4': b'1', **dict.fromkeys(rubbish, b'')}
  archives.unpack([_zip(tmp_path / 'a.zip', files)], out)
  assert _tree(out) == {'happy/1.mp4': b'1'}
  assert (out / 'empty').is_dir()


@pytest.mark.parametrize(
  ('name', 'encoding'),
  [('高兴/李明.mp4', 'gb18030'), ('高兴/李.mp4', 'utf-8'), ('Müller', 'cp437')],
)
def test_names_in_an_encoding_that_is_not_said(tmp_path, out, name, encoding):
  raw = name.encode(encoding)
  stand_in = 'x' * len(raw)
  path = _zip(tmp_path / 'a.zip', {stand_in: b'1'})
  path.write_bytes(path.read_bytes().replace(stand_in.encode(), raw))
  archives.unpack([path], out)
  assert _tree(out) == {name: b'1'}


def test_names_in_a_tar(tmp_path, out):
  path = tmp_path / 'a.tar'
  with tarfile.open(
    path, 'w', format=tarfile.GNU_FORMAT, encoding='gb18030'
  ) as file:
    file.addfile(tarfile.TarInfo('惊讶/王.mp4'))
  archives.unpack([path], out)
  assert list(_tree(out)) == ['惊讶/王.mp4']


# Pieces.


@pytest.mark.parametrize(
  'names',
  [
    ['vox2_dev_mp4_partaa', 'vox2_dev_mp4_partab', 'vox2_dev_mp4_partac'],
    ['a.zip.001', 'a.zip.002', 'a.zip.003'],
    ['a.zip.aa', 'a.zip.ab', 'a.zip.ac'],
    ['a.zip.part0', 'a.zip.part1', 'a.zip.part2'],
  ],
)
@pytest.mark.parametrize('make', [_zip, _tar])
def test_pieces(tmp_path, out, names, make):
  pieces = _cut(make(tmp_path / 'whole'), names)
  archives.unpack(reversed(pieces), out)
  assert _tree(out) == FILES
  shutil.rmtree(out)
  archives.unpack([pieces[1]], out)
  assert _tree(out) == FILES


def test_pieces_in_two_places(tmp_path, out):
  first, last = _cut(_zip(tmp_path / 'a.zip'), ['a.zip.001', 'a.zip.002'])
  moved = tmp_path / 'other' / last.name
  moved.parent.mkdir()
  last.rename(moved)
  archives.unpack([moved, first], out)
  assert _tree(out) == FILES


@pytest.mark.parametrize(
  'names', [['a_partaa', 'a_partab', 'a_partac'], ['a.001', 'a.002', 'a.003']]
)
@pytest.mark.parametrize('lost', [0, 1])
def test_a_missing_piece_is_named(tmp_path, out, names, lost):
  pieces = _cut(_zip(tmp_path / 'a.zip'), names)
  pieces[lost].unlink()
  error = _refused(pieces[2], out, 'missing_piece')
  assert error.path == str(pieces[lost])


@pytest.mark.parametrize('make', [_zip, _tar])
def test_a_missing_last_piece(tmp_path, out, make):
  path = make(tmp_path / 'a', {'1': os.urandom(30_000)})
  pieces = _cut(path, ['a_partaa', 'a_partab', 'a_partac'])
  pieces[2].unlink()
  assert 'a_partab' in _refused(pieces[0], out, 'bad_archive').hint


def test_joined_reads_like_one_file(tmp_path):
  data = os.urandom(1000)
  path = tmp_path / 'a'
  path.write_bytes(data)
  pieces = _cut(path, ['b', 'c', 'd'])
  with io.BufferedReader(archives.Joined(pieces), 16) as file:
    assert file.read() == data
    for start in (0, 333, 334, 335, 667, 668, 999, 1000):
      file.seek(start)
      assert file.read(400) == data[start : start + 400]
    assert file.seek(-10, os.SEEK_END) == 990
    assert file.read() == data[-10:]
    with pytest.raises(OSError, match='start'):
      file.seek(-1001, os.SEEK_END)


def test_find_archives(tmp_path):
  _zip(tmp_path / 'b.zip')
  _zip(tmp_path / 'one' / 'two' / 'deep.zip')
  pieces = _cut(_zip(tmp_path / 'one' / 'x.zip'), ['x_partaa', 'x_partab'])
  (tmp_path / 'one' / 'frame.001').write_bytes(b'a frame')
  (tmp_path / 'one' / 'notes_part.txt').write_bytes(b'notes')
  _tar(tmp_path / 'a.tgz', mode='w:gz')
  found = archives.find_archives(tmp_path)
  assert found == [[tmp_path / 'a.tgz'], [tmp_path / 'b.zip'], pieces]


# What is refused.


@pytest.mark.parametrize(
  'name',
  [
    *('../evil', 'a/../../evil', '/tmp/evil', 'C:/evil', 'c:evil'),
    *('..\\evil', 'a\\..\\..\\evil', '\\\\host\\evil'),
  ],
)
@pytest.mark.parametrize('make', [_zip, _tar])
def test_names_that_lead_outside(tmp_path, out, make, name):
  path = make(tmp_path / 'a', {'1': b'1', name: b'evil'})
  error = _refused(path, out, 'unsafe_archive')
  assert repr(name) in error.hint
  if make is _zip:  # refused by its index
    assert not out.exists()


def test_what_a_nul_hides(tmp_path, out):
  path = _zip(tmp_path / 'a.zip', {'goodx.mp4': b'1'})
  path.write_bytes(path.read_bytes().replace(b'goodx', b'good\0'))
  _refused(path, out, 'unsafe_archive')


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip(tmp_path, out, kind):
  info = zipfile.ZipInfo('link')
  info.external_attr = (kind | 0o777) << 16
  _refused(
    _zip(tmp_path / 'a.zip', {'1': b'1', info: b'/etc'}), out, 'unsafe_archive'
  )
  assert not out.exists()


@pytest.mark.parametrize(
  'kind',
  [
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
  ],
)
def test_links_and_devices_in_a_tar(tmp_path, out, kind):
  info = tarfile.TarInfo('link')
  info.type, info.linkname = kind, 'happy/1.mp4'
  _refused(_tar(tmp_path / 'a.tar', extra=[info]), out, 'unsafe_archive')
  assert not (out / 'link').exists()
  assert not (out / 'link').is_symlink()


@pytest.mark.parametrize('make', [_zip, _tar])
def test_a_link_that_was_there_leads_nowhere(tmp_path, out, make):
  (tmp_path / 'elsewhere').mkdir()
  out.mkdir(parents=True)
  (out / 'happy').symlink_to(tmp_path / 'elsewhere')
  path = make(tmp_path / 'a')
  _refused(path, out, 'unsafe_archive')
  assert not _tree(tmp_path / 'elsewhere')


def test_a_linked_file_is_replaced_not_followed(tmp_path, out):
  mine = tmp_path / 'mine'
  mine.write_bytes(b'2')
  out.mkdir(parents=True)
  (out / '1').symlink_to(mine)
  (out / ('1' + archives.PART_SUFFIX)).symlink_to(mine)
  archives.unpack([_zip(tmp_path / 'a.zip', {'1': b'1'})], out)
  assert mine.read_bytes() == b'2'
  assert _tree(out) == {'1': b'1'}


@pytest.mark.parametrize('make', [_zip, _tar])
def test_a_name_that_comes_twice(tmp_path, out, make):
  files = {'a/1.mp4': b'one', 'a/./1.mp4': b'two'}
  with pytest.raises(MiraInputError, match='twice') as caught:
    archives.unpack([make(tmp_path / 'x', files)], out)
  assert caught.value.code == 'unsafe_archive'
  assert (out / 'a/1.mp4').read_bytes() == b'one'


def test_bombs(tmp_path, out):
  zeros = bytes(3 << 20)
  path = _zip(tmp_path / 'a.zip', {'1': b'1', 'zeros': zeros})
  assert 'bomb' in _refused(path, out, 'unsafe_archive').hint
  assert not out.exists()
  path = _tar(tmp_path / 'a.tgz', {'1': b'1', 'zeros': zeros}, 'w:gz')
  _refused(path, out, 'unsafe_archive')
  assert _tree(out) == {'1': b'1'}


def test_a_bomb_of_many_small_members(tmp_path, out):
  files = {f'{i:03}': bytes(900_000) for i in range(4)}
  assert (
    'all'
    in _refused(_zip(tmp_path / 'a.zip', files), out, 'unsafe_archive').hint
  )


def test_small_files_are_no_bombs(tmp_path, out):
  path = _zip(tmp_path / 'a.zip', {'zeros': bytes(1 << 20)})
  assert archives.unpack([path], out).size == 1 << 20


def test_a_header_without_end(tmp_path, out):
  info = tarfile.TarInfo('1')
  info.pax_headers = {'comment': os.urandom(1 << 20).hex() * 3}
  path = _tar(tmp_path / 'a.tar', {}, extra=[info])
  assert 'header' in _refused(path, out, 'unsafe_archive').hint


def test_a_sparse_file(tmp_path, out):
  info = tarfile.TarInfo('huge')
  info.pax_headers = {'GNU.sparse.map': '0,0', 'GNU.sparse.size': str(1 << 40)}
  path = _tar(tmp_path / 'a.tar', extra=[info])
  _refused(path, out, 'unsafe_archive')


@pytest.mark.parametrize('make', [_zip, _tar])
def test_too_many_members(tmp_path, out, make, monkeypatch):
  monkeypatch.setattr(archives, 'MAX_MEMBERS', 2)
  path = make(tmp_path / 'a')
  _refused(path, out, 'unsafe_archive')


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('known', [8, 100_000])
def test_more_bytes_than_promised(tmp_path, out, method, known):
  content = os.urandom(100_000)
  path = _zip(tmp_path / 'a.zip', {'1': content}, method)
  data = bytearray(path.read_bytes())
  entry = data.index(b'PK\1\2')
  # The checksum may fit what is promised, or all there is.
  struct.pack_into('<I', data, entry + 16, zlib.crc32(content[:known]))
  struct.pack_into('<I', data, entry + 24, 8)
  path.write_bytes(data)
  _refused(path, out, 'unsafe_archive')
  assert _tree(out) == {}


@pytest.mark.parametrize('make', [_zip, _tar])
def test_too_large_for_the_disk(tmp_path, out, make, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=2999)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  path = make(tmp_path / 'a')
  _refused(path, out, 'disk_full')
  assert _tree(out) == {}
  (out / 'happy').mkdir(parents=True, exist_ok=True)
  # What is there already needs no room.
  (out / 'happy' / '1.mp4').write_bytes(FILES['happy/1.mp4'])
  assert archives.unpack([path], out).skipped == 1


def test_a_disk_that_fills_up(tmp_path, out, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, 'no space')

  monkeypatch.setattr(archives._Writer, '_copy', fail)
  _refused(_zip(tmp_path / 'a.zip'), out, 'disk_full')


# What is damaged.


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_checksum(tmp_path, out, method):
  path = _zip(tmp_path / 'a.zip', method=method)
  data = bytearray(path.read_bytes())
  data[1000] ^= 1
  path.write_bytes(data)
  assert 'happy/1.mp4' in _refused(path, out, 'bad_archive').hint
  assert _tree(out) == {}


def test_a_damaged_tar_is_no_short_one(tmp_path, out):
  path = _tar(tmp_path / 'a.tar')
  data = bytearray(path.read_bytes())
  second = data.index(b'happy/2.mp4')
  data[second] ^= 1
  path.write_bytes(data)
  _refused(path, out, 'bad_archive')
  path.write_bytes(data[:second])  # cut where a member ends
  _refused(path, out, 'bad_archive')


@pytest.mark.parametrize('mode', ['w:gz', 'w:bz2', 'w:xz'])
@pytest.mark.parametrize('cut', [True, False])
def test_a_damaged_tar_gz(tmp_path, out, mode, cut):
  path = _tar(tmp_path / 'a.tgz', mode=mode)
  data = bytearray(path.read_bytes())
  data[-6] ^= 1
  path.write_bytes(data[:-40] if cut else data)
  _refused(path, out, 'bad_archive')


@pytest.mark.parametrize('name', ['a.zip', 'a.tar', 'a.tgz', 'a', 'a.rar'])
@pytest.mark.parametrize(
  'data', [b'', b'not an archive' * 50, b'Rar!\x1a\7', b'PK\5\6' + b'\xff' * 18]
)
def test_not_an_archive(tmp_path, out, name, data):
  path = tmp_path / name
  path.write_bytes(data)
  error = _refused(path, out, 'bad_archive')
  assert ('7-Zip' in error.hint) == data.startswith(b'Rar!')


def test_a_compressed_file_that_is_no_tar(tmp_path, out):
  path = tmp_path / 'labels.csv.gz'
  path.write_bytes(zlib.compress(b'path,label\n' * 99, wbits=31))
  _refused(path, out, 'bad_archive')


def test_a_zip_over_several_disks(tmp_path, out):
  (tmp_path / 'a.z01').write_bytes(b'PK\7\x08')
  assert (
    'zip -s 0' in _refused(_zip(tmp_path / 'a.zip'), out, 'bad_archive').hint
  )


def test_a_method_that_is_not_read(tmp_path, out):
  path = _zip(tmp_path / 'a.zip', method=zipfile.ZIP_LZMA)
  assert '7-Zip' in _refused(path, out, 'bad_archive').hint


# Resuming.


@pytest.mark.parametrize('make', [_zip, _tar])
def test_an_interruption_loses_the_file_in_flight(
  tmp_path, out, make, monkeypatch
):
  path = make(tmp_path / 'a')
  copy, written = archives._Writer._copy, []

  def stop_at_second(self, member, source, sink):
    if written:
      sink.write(b'half')
      raise KeyboardInterrupt
    written.append(member.name)
    copy(self, member, source, sink)

  with monkeypatch.context() as patch:
    patch.setattr(archives._Writer, '_copy', stop_at_second)
    with pytest.raises(KeyboardInterrupt):
      archives.unpack([path], out)
  assert list(_tree(out)) == ['happy/1.mp4']
  # A process that is killed leaves the half behind.
  (out / 'happy' / ('2.mp4' + archives.PART_SUFFIX)).write_bytes(b'half')
  stamp = (out / 'happy' / '1.mp4').stat().st_mtime_ns
  summary = archives.unpack([path], out)
  assert (summary.files, summary.skipped) == (2, 1)
  assert (out / 'happy' / '1.mp4').stat().st_mtime_ns == stamp
  assert _tree(out) == FILES


def test_a_file_of_another_size_is_replaced(tmp_path, out):
  (out / 'happy').mkdir(parents=True)
  (out / 'happy' / '1.mp4').write_bytes(b'old')
  archives.unpack([_zip(tmp_path / 'a.zip')], out)
  assert _tree(out) == FILES


# Passwords.


def _encrypt(data: bytes, password: bytes, check: int) -> bytes:
  """PKWARE's old cipher, of which Python only has the other direction."""
  table = []
  for value in range(256):
    for _ in range(8):
      value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    table.append(value)
  keys = [0x12345678, 0x23456789, 0x34567890]

  def update(byte: int) -> None:
    keys[0] = keys[0] >> 8 ^ table[(keys[0] ^ byte) & 255]
    keys[1] = (keys[1] + (keys[0] & 255)) * 134775813 + 1 & 0xFFFFFFFF
    keys[2] = keys[2] >> 8 ^ table[(keys[2] ^ keys[1] >> 24) & 255]

  for byte in password:
    update(byte)
  result = bytearray()
  for byte in bytes(range(11)) + bytes([check]) + data:
    word = keys[2] & 0xFFFF | 2
    result.append(byte ^ (word * (word ^ 1) >> 8 & 255))
    update(byte)
  return bytes(result)


def _encrypted(path: pathlib.Path, password: bytes, method: int = 0):
  """A zip of one stored, encrypted member."""
  data, name = b'a secret', b'happy/1.mp4'
  crc = zlib.crc32(data)
  packed = _encrypt(data, password, crc >> 24)
  fields = (20, 1, method, 0, 33, crc, len(packed), len(data), len(name), 0)
  local = struct.pack('<4s5H3I2H', b'PK\3\4', *fields) + name + packed
  entry = struct.pack('<4s6H3I5H2I', b'PK\1\2', 20, *fields, 0, 0, 0, 0, 0)
  entry += name
  end = (0, 0, 1, 1, len(entry), len(local), 0)
  path.write_bytes(local + entry + struct.pack('<4s4H2IH', b'PK\5\6', *end))
  return path


def test_an_encrypted_zip(tmp_path, out):
  path = _encrypted(tmp_path / 'a.zip', '密码'.encode())
  asked = []
  archives.unpack([path], out, ask=lambda name: asked.append(name) or '密码')
  assert asked == ['a.zip']
  assert _tree(out) == {'happy/1.mp4': b'a secret'}


def test_no_password(tmp_path, out):
  path = _encrypted(tmp_path / 'a.zip', b'right')
  assert '--ask-password' in _refused(path, out, 'no_password').hint
  _refused(path, out, 'no_password', ask=lambda name: '')
  assert not out.exists()


def test_wrong_passwords(tmp_path, out):
  path = _encrypted(tmp_path / 'a.zip', b'right')
  # Some of these pass the one byte that is checked before the content.
  for number in range(600):
    wrong = f'a guess {number}'
    error = _refused(path, out, 'bad_password', ask=lambda _, w=wrong: w)
    assert wrong not in str(error)
  assert _tree(out) == {}


def test_aes_is_left_to_others(tmp_path, out):
  path = _encrypted(tmp_path / 'a.zip', b'right', method=99)
  error = _refused(path, out, 'bad_archive', ask=lambda name: 'right')
  assert '7-Zip' in error.hint


# The command.


def _unpack(capsys, *args) -> tuple[int, str, str]:
  code = cli.main(['unpack', *map(str, args)])
  return code, *capsys.readouterr()


def test_command(capsys, tmp_path, out):
  paths = [_zip(tmp_path / 'a.zip'), _tar(tmp_path / 'b.tar', {'b': b'b'})]
  code, text, err = _unpack(capsys, *paths, '--out', out)
  assert code == ExitCode.OK
  assert err == ''  # the bar is for terminals
  assert text.count('\n') == 1
  assert '4 files unpacked (3.0 kB), 0 skipped' in text
  assert _tree(out) == {**FILES, 'b': b'b'}


def test_command_asks_on_the_terminal(capsys, tmp_path, out, monkeypatch):
  path = _encrypted(tmp_path / 'a.zip', b'right')
  code, _, err = _unpack(capsys, path, '--out', out)
  assert (code, err.count('\n')) == (ExitCode.DATA, 1)
  monkeypatch.setattr(getpass, 'getpass', lambda prompt: 'right')
  code, text, err = _unpack(capsys, path, '--out', out, '--ask-password')
  assert code == ExitCode.OK
  assert 'right' not in text + err


def test_command_without_a_terminal(capsys, tmp_path, out, monkeypatch):
  def warn(prompt):
    warnings.warn('seen by all', getpass.GetPassWarning, stacklevel=1)

  monkeypatch.setattr(getpass, 'getpass', warn)
  path = _encrypted(tmp_path / 'a.zip', b'right')
  code, _, err = _unpack(capsys, path, '--out', out, '--ask-password')
  assert code == ExitCode.DATA
  assert 'no_password' in err


def test_command_refuses_in_one_line(capsys, tmp_path, out):
  path = _zip(tmp_path / 'a.zip', {'../\x1b[2Jevil': b''})
  code, text, err = _unpack(capsys, path, '--out', out)
  assert (code, text, err.count('\n')) == (ExitCode.DATA, '', 1)
  assert 'unsafe_archive' in err
  assert '\x1b' not in err
  code, _, err = _unpack(capsys, tmp_path / 'none.zip', '--out', out)
  assert code == ExitCode.USAGE
  assert 'not_found' in err


def test_the_password_is_no_argument(tmp_path, out):
  with pytest.raises(SystemExit):
    cli.main(['unpack', 'a.zip', f'--out={out}', '--ask-password=right'])
