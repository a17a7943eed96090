"""The datasets of the field, from their owners' downloads."""

from mira_jax.prepare.builders import (
  casme2,
  ck_plus,
  crema_d,
  dfew,
  ferv39k,
  mafw,
  mmew,
  ravdess,
  samm,
  scenes,
  smic,
  voxceleb2,
)
from mira_jax.prepare.builders.builder import Builder, Clips, tally
from mira_jax.prepare.builders.tree import Tree

BUILDERS = {
  builder.name: builder
  for builder in (
    dfew.BUILDER,
    mafw.BUILDER,
    ferv39k.BUILDER,
    crema_d.BUILDER,
    ravdess.BUILDER,
    scenes.AFEW,
    scenes.CAER,
    casme2.BUILDER,
    samm.BUILDER,
    mmew.BUILDER,
    smic.BUILDER,
    ck_plus.BUILDER,
    voxceleb2.BUILDER,
  )
}

__all__ = ['BUILDERS', 'Builder', 'Clips', 'Tree', 'tally']
