"""What becomes of every setting that a file of another program carries.

A table sorts the names of such settings. One that is used is read by the code
beside the table; one that is refused names a model that ours cannot be; one
without meaning does not change what a model computes; one that no table has is
reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mira_jax.errors import some

Settings = Mapping[str, Any]
_SHOWN = 12  # names in a remark


@dataclasses.dataclass(frozen=True)
class Table:
  """The settings of one kind of file.

  Attributes:
    used: names that decide what is computed here.
    only: name -> the values that it may have; others are refused.
    without_meaning: names that change no number of a given clip.
  """

  used: frozenset[str]
  only: Mapping[str, tuple[Any, ...]]
  without_meaning: frozenset[str]

  def check(self, settings: Settings, where: str) -> list[str]:
    """Remarks on settings that the table does not have.

    Args:
      settings: by name.
      where: they are, such as 'config.json'.

    Raises:
      ValueError: one has a value that is refused.
    """
    for name, allowed in self.only.items():
      if name in settings and settings[name] not in allowed:
        raise refused(where, name, settings[name], f'only {allowed[0]!r} is')
    known = {*self.used, *self.only, *self.without_meaning}
    unknown = [ascii(name)[1:-1] for name in settings if name not in known]
    if not unknown:
      return []
    names = some(unknown, _SHOWN)
    return [f'{where}: settings of no known meaning are left out: {names}']


def table(used: str, only: Mapping[str, tuple], without_meaning: str) -> Table:
  """A table from names with spaces between."""
  rest = frozenset(without_meaning.split())
  return Table(frozenset(used.split()), only, rest)


def refused(where: str, name: str, value: Any, why: str) -> ValueError:
  """The error of a value that ours cannot be; `why` ends before 'supported'."""
  return ValueError(f'{where}: {name} is {ascii(value)[:60]}; {why} supported')


def whole(settings: Settings, name: str, where: str) -> int | None:
  """A whole number above 0; None where the setting is absent or None."""
  return _typed(settings, name, where, int, 'a whole number above 0')


def number(settings: Settings, name: str, where: str) -> float | None:
  """A finite number above 0; None where the setting is absent or None."""
  return _typed(settings, name, where, (int, float), 'a number above 0')


def _typed(
  settings: Settings, name: str, where: str, kind: Any, what: str
) -> Any:
  value = settings.get(name)
  if value is None:
    return None
  fits = isinstance(value, kind) and not isinstance(value, bool)
  if not fits or not 0 < value < 2**31 or not math.isfinite(value):
    raise refused(where, name, value, f'{what} is')
  return value


def flag(settings: Settings, name: str, where: str, default: bool) -> bool:
  """True or false."""
  value = settings.get(name)
  if value is None:
    return default
  if not isinstance(value, bool):
    raise refused(where, name, value, 'true or false is')
  return value


def side(settings: Settings, name: str, where: str) -> int | None:
  """A number of pixels, or a pair of equal ones."""
  value = settings.get(name)
  if isinstance(value, (list, tuple)):
    if len(value) != 2 or value[0] != value[1]:
      raise refused(where, name, value, 'one length for both sides is')
    settings = {name: value[0]}
  return whole(settings, name, where)


# ----- the authors' runs ------------------------------------------------------

# What argparse saves in their checkpoints, fine-tuning and pre-training.
REFERENCE = table(
  used="""
    add_fmp_attention fmp_num_last_layers use_fmp_flashlite stats_mode
    fmp_no_use_ema fmp_use_residual flash_tau add_intra_attention
    num_frames input_size window_size patch_size tubelet_size
    mask_type mask_ratio normlize_target no_normlize_target
    sampling_rate data_set
    """,
  only={
    # Theirs takes the first token of the video for one of the class.
    'use_mean_pooling': (True, None),
    'use_cls': (False, None),
    'imagenet_default_mean_and_std': (True, None),
  },
  # Told by the tensors, of training alone, or of where and how it ran.
  without_meaning="""
    model nb_classes use_st_block use_learnable_pos_emb decoder_depth
    init_scale
    drop fc_drop_rate attn_drop_rate drop_path
    batch_size epochs start_epoch update_freq use_checkpoint with_checkpoint
    opt opt_eps opt_betas clip_grad momentum weight_decay weight_decay_end
    lr min_lr warmup_lr warmup_epochs warmup_steps layer_decay loss_type
    model_ema model_ema_decay model_ema_force_cpu color_jitter num_sample aa
    smoothing train_interpolation crop_pct short_side_size test_num_segment
    test_num_crop num_segments reprob remode recount resplit mixup cutmix
    cutmix_minmax mixup_prob mixup_switch_prob mixup_mode finetune model_key
    model_prefix data_path eval_data_path output_dir log_dir device seed resume
    auto_resume no_auto_resume save_ckpt no_save_ckpt save_ckpt_freq eval
    eval_metric dist_eval disable_eval_during_finetuning num_workers pin_mem
    no_pin_mem world_size local_rank rank gpu dist_on_itp dist_url dist_backend
    distributed enable_deepspeed deepspeed deepspeed_config deepscale
    deepscale_config deepspeed_mpi
    """,
)


def of_reference(args: Settings) -> tuple[dict[str, Any], list[str]]:
  """What the saved settings of a run of the authors say, by our names.

  Returns:
    Such of `frames`, `image_size`, `rate`, `fit`, `mira` (a mode, 'plain' for
    none), `mira_last_blocks`, `statistics`, `residual_mix`, `temperature`,
    `variant`, `mask`, `mask_ratio`, `normalise_targets` as they say; remarks.

  Raises:
    ValueError: it names a setting that ours cannot be.
  """
  where = 'the settings saved in it (args)'
  if not args:
    return {}, []
  remarks = REFERENCE.check(args, where)
  found = {
    'frames': whole(args, 'num_frames', where),
    'image_size': _image_size(args, where),
    'rate': whole(args, 'sampling_rate', where),
    'fit': _fit(args),
    'temperature': number(args, 'flash_tau', where),
    'mira_last_blocks': whole(args, 'fmp_num_last_layers', where),
    'mask': args.get('mask_type'),
    'mask_ratio': number(args, 'mask_ratio', where),
  }
  if found['mask'] not in (None, 'tube', 'random'):
    raise refused(where, 'mask_type', found['mask'], "'tube' or 'random' is")
  if (found['mask_ratio'] or 0) >= 1:
    raise refused(where, 'mask_ratio', found['mask_ratio'], 'less than 1 is')
  if 'normlize_target' in args or 'no_normlize_target' in args:
    found['normalise_targets'] = flag(
      args, 'normlize_target', where, True
    ) and not flag(args, 'no_normlize_target', where, False)
  if flag(args, 'add_intra_attention', where, False):
    found['variant'] = 'intra_as_shipped'
  found |= _mira(args, where)
  return {n: x for n, x in found.items() if x is not None}, remarks


def _fit(args: Settings) -> str | None:
  """How frames become square: theirs are squashed where they are stored."""
  name = args.get('data_set')
  if not isinstance(name, str):
    return None
  stored = name.endswith('_crop') or name.startswith(('FERV39k', 'AVCAFFE'))
  return 'squash' if stored else 'crop'


def _mira(args: Settings, where: str) -> dict[str, Any]:
  found: dict[str, Any] = {}
  if 'use_fmp_flashlite' in args:
    flashlite = flag(args, 'use_fmp_flashlite', where, False)
    found['mira'] = 'flashlite' if flashlite else 'exact'
  if not flag(args, 'add_fmp_attention', where, True):
    found |= {'mira': 'plain', 'mira_last_blocks': None}
  if 'fmp_use_residual' in args:
    mixed = flag(args, 'fmp_use_residual', where, True)
    found['residual_mix'] = 0.5 if mixed else 1.0
  mode = args.get('stats_mode')
  if mode not in (None, 'instance', 'batch', 'batch_ema'):
    raise refused(where, 'stats_mode', mode, 'instance, batch, batch_ema are')
  if mode == 'batch_ema' and flag(args, 'fmp_no_use_ema', where, False):
    mode = 'batch'  # what is left of it without the average
  return found | ({'statistics': mode} if mode else {})


def _image_size(args: Settings, where: str) -> int | None:
  """Pixels, from the size itself or from tokens times their size."""
  patch, grid = side(args, 'patch_size', where), args.get('window_size')
  size = side(args, 'input_size', where)
  if size or not patch or not isinstance(grid, (list, tuple)) or not grid[1:]:
    return size
  tokens = side({'window_size': grid[1:]}, 'window_size', where)
  return tokens and tokens * patch
