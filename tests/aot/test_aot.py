"""Communication and least time of a compiled step; `mira aot`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mira_jax.aot import chips, hlo
from mira_jax.cli import main as cli
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode

# ----- communication ----------------------------------------------------------


def compiled(f, *arrays) -> str:
  """The program of arrays given as (shape, partition), on eight devices."""
  mesh = sharding.make_mesh(data=2, fsdp=4)
  shapes = [
    jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, p))
    for s, p in arrays
  ]
  whole = NamedSharding(mesh, PartitionSpec())
  with jax.set_mesh(mesh):
    return jax.jit(f, out_shardings=whole).lower(*shapes).compile().as_text()


SPLIT, WHOLE = PartitionSpec(('data', 'fsdp')), PartitionSpec()


def test_gradients_are_summed_over_devices():
  text = compiled(
    jax.grad(lambda w, x: jnp.square(x @ w).sum()),
    *(((32, 16), WHOLE), ((64, 32), SPLIT)),
  )
  found = [hlo.Collective('all-reduce', 8, 1, 4 * 32 * 16)]
  assert hlo.collectives(text) == found


def test_communication_in_a_loop_counts_as_often():
  spec = PartitionSpec(None, ('data', 'fsdp'))
  text = compiled(
    lambda w, x: jax.lax.scan(lambda y, x: (y + x.T @ x, None), w, x)[0],
    *(((16, 16), WHOLE), ((5, 64, 16), spec)),
  )
  (found,) = hlo.collectives(text)
  assert found.kind == 'all-reduce'
  assert (found.times, found.bytes) == (5, 5 * 4 * 16 * 16)


def test_split_parameters_are_gathered_within_their_groups():
  text = compiled(lambda w: jnp.sin(w), ((32, 16), PartitionSpec('fsdp')))
  (found,) = hlo.collectives(text)
  assert (found.kind, found.group) == ('all-gather', 4)
  assert (found.times, found.bytes) == (1, 4 * 32 * 16)


# As a TPU's compiler writes them, but for what nothing reads.
TPU = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%start (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[32,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), \
channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%all-reduce-scatter.1 (q: f32[64,16]) -> f32[16,16] {
  %q = f32[64,16]{1,0} parameter(0)
  %all-reduce.9 = f32[64,16]{1,0} all-reduce(%q), channel_id=8, \
replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %cut = f32[16,16]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), \
dynamic_slice_sizes={16,16}
}

%body (state: (s32[], bf16[8,128], f32[64,16])) -> (s32[], bf16[8,128], \
f32[64,16]) {
  %state = (s32[]{:T(128)}, bf16[8,128]{1,0}, f32[64,16]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %w = bf16[8,128]{1,0} get-tuple-element(%state), index=1
  %g = f32[64,16]{1,0} get-tuple-element(%state), index=2
  %begin = bf16[32,128]{1,0} fusion(%w), kind=kCustom, calls=%start
  %end = bf16[32,128]{1,0} fusion(%w), kind=kCustom, calls=%start
  %own = f32[16,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[]{:T(128)}, bf16[8,128]{1,0}, f32[64,16]{1,0}) tuple(%i, \
%w, %g)
}

%condition (state.1: (s32[], bf16[8,128], f32[64,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %state.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}, f32[64,16]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x: (s32[], bf16[8,128], f32[64,16])) -> f32[] {
  %x = (s32[]{:T(128)}, bf16[8,128]{1,0}, f32[64,16]{1,0}) parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}, f32[64,16]{1,0}) while(%x), \
condition=%condition, body=%body
  %y = f32[8,7]{0,1:T(8,128)S(1)} constant({...})
  %permute-start = (f32[8,7]{0,1}, f32[8,7]{0,1}, u32[]{:S(2)}) \
collective-permute-start(%y), channel_id=1, source_target_pairs={{0,3},{3,0}}
  %permute-done = f32[8,7]{0,1} collective-permute-done(%permute-start)
  %token = token[] after-all()
  %send.1 = (f32[8,7]{1,0}, u32[], token[]) send(%y, %token), channel_id=9, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:255}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %loss = f32[]{:T(128)} constant(0)
  ROOT %all-reduce.1 = f32[]{:T(128)} all-reduce(%loss), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
}
"""


def test_the_notation_of_a_tpu():
  found = {(x.kind, x.group): x[2:] for x in hlo.collectives(TPU)}
  assert found == {
    ('all-gather', 4): (12, 12 * 2 * 32 * 128),  # written twice
    ('reduce-scatter', 4): (12, 12 * 4 * 64 * 16),
    ('collective-permute', 2): (1, 4 * 8 * 7),
    ('all-reduce between slices', 4): (1, 4 * 8 * 7),
    ('all-reduce', 4): (1, 4),
  }


@pytest.mark.parametrize(
  ('text', 'group'),
  [
    ('{{0,1},{2,3}}', 2),
    ('[4,2]<=[2,4]T(1,0)', 2),
    ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", 2),
    ("mesh['a'=8] {'a':(2)2}", 2),
    ("mesh['a'=2,'b'=2] {'a','b'}", 4),
  ],
)
def test_groups_in_every_notation(text, group):
  line = f'  %r = f32[4]{{0}} all-reduce(%x), replica_groups={text}, b=1'
  module = (
    f'ENTRY %m (x: f32[4]) -> f32[4] {{\n  %x = f32[4] parameter(0)\n{line}\n}}'
  )
  (found,) = hlo.collectives(module)
  assert found == ('all-reduce', group, 1, 16)


# ----- the estimate -----------------------------------------------------------

V5E = chips.of_kind('TPU v5 lite')


@pytest.mark.parametrize('compute', [0.5, 2.0])
def test_the_least_time_is_that_of_products_or_of_links(compute):
  ring = hlo.Collective('all-reduce', 4, 1, 10**11)
  assert chips.bound(V5E, compute * 197e12, [ring]) == {
    'compute': compute,
    'collectives': 2 * 3 / 4 * 1e11 / (4 * 50e9),
    'seconds': max(compute, 0.75),
  }


@pytest.mark.parametrize(
  ('kind', 'seconds'),
  [
    ('all-reduce', 2 * 0.5 * 4e9 / 200e9),
    ('all-gather', 0.5 * 4e9 / 200e9),
    ('collective-permute', 4e9 / 50e9),
    ('all-reduce between slices', 2 * 0.5 * 4e9 / 3.125e9),
    ('permute between slices', 4e9 / 3.125e9),
  ],
)
def test_collectives_on_rings(kind, seconds):
  found = [
    chips.of_collective(V5E, hlo.Collective(kind, group, 1, 4 * 10**9))
    for group in (2, 1)
  ]
  assert found == [seconds, 0]


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('NVIDIA H100 80GB HBM3', 'H100'),
  ],
)
def test_chips_by_their_device_kind(kind, name):
  assert chips.of_kind(kind).name == name
  with pytest.raises(ValueError, match='is not one of'):
    chips.of_kind('cpu')


# ----- the command ------------------------------------------------------------


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--topology=v9:2x2'], 'bad_topology: v9:2x2: name a TPU'),
    (['--topology=v5e:2x2,v5e'], 'bad_topology: v5e: name a TPU'),
    (['--gpu=h200', '--config.model.dept=3'], 'did you mean model.depth'),
    (
      ['--topology=v5e:2x2', '--compiler=nowhere'],
      'pip install --quiet --no-deps --upgrade --target nowhere libtpu==',
    ),
  ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, request, flags, message):
  monkeypatch.chdir(request.config.rootpath)
  code = cli.main(['aot', 'configs/dfew.py:B', *flags])
  err = capsys.readouterr().err
  assert code == ExitCode.USAGE
  assert err.startswith('mira: ')
  assert message in err
  assert err.count('\n') == 1
