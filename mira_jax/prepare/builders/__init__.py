"""The datasets of the field, from the downloads of their providers."""

from mira_jax.prepare.builders import lists, names, sheets, subjects, units
from mira_jax.prepare.builders.builder import Builder, Clips, tally
from mira_jax.prepare.builders.tree import Tree

BUILDERS = {
  builder.name: builder
  for module in (lists, names, sheets, subjects, units)
  for builder in module.BUILDERS
}

__all__ = ['BUILDERS', 'Builder', 'Clips', 'Tree', 'tally']
