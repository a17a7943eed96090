"""MiRA and its video transformer in PyTorch, from docs/method.md.

For those who have a PyTorch model, and as the other side of `mira compare
torch`. Nothing here computes with JAX. `mira_attention` is a function of
queries, keys and values; `Attention` has the names and shapes of the authors'
code, so that it can stand in the blocks of VideoMAE and of the like; and
`VideoTransformer` is the whole classifier, which loads what `mira convert`
writes:

  model = VideoTransformer(dim=768, depth=12, heads=12, num_classes=7,
                           mira=MiraConfig(mode='exact'))
  model.load_state_dict(safetensors.torch.load_file('w.torch.safetensors'))
"""

# To torch's types a module's attribute may be a tensor.
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from mira_jax.mira import MiraConfig


class FrameGain(NamedTuple):
  """The gain of each frame [B or 1, T], and the average [T] afterwards."""

  gain: Tensor
  average: Tensor | None


def frame_gain(
  marginal: Tensor,
  num_frames: int,
  config: MiraConfig,
  *,
  average: Tensor | None = None,
  training: bool = False,
) -> FrameGain:
  """Gain of each frame from a marginal over tokens (docs/method.md, 1 to 4).

  Args:
    marginal: [B, L], the key marginal (exact) or key energy (flashlite).
    num_frames: T; must divide L.
    config: hyper-parameters.
    average: [T], of the confidence, to train with statistics='batch_ema'.
    training: whether the average moves.
  """
  exact = config.mode == 'exact'
  if not (exact and config.gain_gradient):
    marginal = marginal.detach()
  tokens = marginal.unflatten(-1, (num_frames, -1))
  mass = tokens.sum(-1)
  own = _normalised(mass.clamp(min=1e-6) if exact else mass)
  share = _normalised(tokens).clamp(min=1e-12)
  concentration = 1 / (-(share * share.log()).sum(-1) + 1e-6)
  confidence = own
  if config.statistics != 'instance':
    confidence = own.mean(0, keepdim=True)
    concentration = concentration.mean(0, keepdim=True)
  if config.statistics == 'batch_ema' and training:
    if average is None:
      raise ValueError("statistics='batch_ema' trains with an average")
    momentum = config.ema_momentum
    present = confidence[0].detach()
    moved = momentum * average.to(present) + (1 - momentum) * present
    average, confidence = moved, moved[None]
  score = config.confidence_weight * confidence
  if tokens.shape[-1] > 1:  # one token has no entropy
    score = score + config.concentration_weight * concentration
  if exact:
    low, high = (f(-1, keepdim=True).values for f in (score.min, score.max))
    score = (score - low) / (high - low + 1e-12)
    prior = _normalised((score + config.power_eps) ** config.power)
  else:
    deviation = score.std(-1, keepdim=True, correction=0).clamp(min=1e-6)
    score = (score - score.mean(-1, keepdim=True)) / deviation
    prior = torch.softmax(config.temperature * score, -1)
  prior = (1 - config.uniform_mix) * prior + config.uniform_mix / num_frames
  if exact:
    gain = prior / own.detach().clamp(min=1e-5)
  else:
    gain = prior * num_frames
  return FrameGain(gain.clamp(config.gain_min, config.gain_max), average)


def mira_attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  *,
  num_frames: int,
  config: MiraConfig | None,
  average: Tensor | None = None,
  training: bool = False,
) -> tuple[Tensor, FrameGain | None]:
  """Multi-head attention over a clip, with MiRA unless `config` is None.

  Plain and flashlite run in `scaled_dot_product_attention`; flashlite's bias
  travels as one more channel, so that flash kernels serve. Exact needs the
  whole map. Statistics are computed in float32 at least.

  Takes [B, H, L, D] of tokens that are ordered frame by frame, and what
  `frame_gain` takes. Returns the output [B, H, L, D], and the gain.
  """
  if config is None:
    return functional.scaled_dot_product_attention(q, k, v), None
  wide = torch.promote_types(q.dtype, torch.float32)
  options = {'average': average, 'training': training}
  each = q.shape[-2] // num_frames
  if config.mode == 'flashlite':
    energy = k.detach().to(wide).square().mean((1, 3))
    frames = frame_gain(energy, num_frames, config, **options)
    bias = frames.gain.clamp(min=1e-12).log().repeat_interleave(each, -1)
    bias = bias.to(q.dtype)[:, None, :, None].expand(*k.shape[:3], 1)
    scale = q.shape[-1] ** -0.5
    # Zeros fill a kernel's vectors: widths of 8 are what they take.
    room = [q.new_zeros(*q.shape[:3], 7)]
    one = torch.full_like(q[..., :1], 1 / scale)
    output = functional.scaled_dot_product_attention(
      torch.cat([q, one, *room], -1),
      torch.cat([k, bias, *room], -1),
      torch.cat([v, torch.zeros_like(one), *room], -1),
      scale=scale,
    )
    return output[..., : v.shape[-1]], frames
  attention = (q * q.shape[-1] ** -0.5) @ k.mT
  attention = torch.softmax(attention, -1, dtype=wide)
  marginal = attention.mean((1, 2))
  frames = frame_gain(marginal, num_frames, config, **options)
  gain = frames.gain.repeat_interleave(each, -1)[:, None, None]
  floor = config.floor / q.shape[-2]
  moved = _normalised((1 - config.floor) * attention * gain + floor)
  attention = attention + config.residual_mix * (moved - attention)
  return attention.to(v.dtype) @ v, frames


class Attention(nn.Module):
  """Self-attention with MiRA as an option, [B, L, C] -> [B, L, C].

  `frames` is the gain of the last call, None without MiRA.
  """

  def __init__(
    self, dim: int, heads: int, num_frames: int, mira: MiraConfig | None = None
  ):
    super().__init__()
    self.heads, self.num_frames, self.mira = heads, num_frames, mira
    self.qkv = nn.Linear(dim, 3 * dim, bias=False)
    self.q_bias = nn.Parameter(torch.zeros(dim))
    self.v_bias = nn.Parameter(torch.zeros(dim))
    self.proj = nn.Linear(dim, dim)
    if mira is not None:  # only 'batch_ema' needs it; authors always keep it
      self.register_buffer('c_buf', torch.full((1, num_frames), 1 / num_frames))
    self.frames: FrameGain | None = None

  def forward(self, x: Tensor) -> Tensor:
    # Keys have no bias: it would cancel in the softmax.
    bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
    qkv = functional.linear(x, self.qkv.weight, bias)
    qkv = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    average = self.c_buf[0] if self.mira is not None else None
    y, self.frames = mira_attention(
      *qkv,
      num_frames=self.num_frames,
      config=self.mira,
      average=average,
      training=self.training,
    )
    if self.frames is not None and self.frames.average is not None:
      self.c_buf.copy_(self.frames.average[None])
    return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
  """Pre-norm transformer block."""

  def __init__(
    self, dim: int, hidden: int, gelu: str, eps: float, attention: Attention
  ):
    super().__init__()
    self.norm1 = nn.LayerNorm(dim, eps=eps)
    self.attn = attention
    self.norm2 = nn.LayerNorm(dim, eps=eps)
    self.mlp = nn.Sequential()
    self.mlp.add_module('fc1', nn.Linear(dim, hidden))
    approximate = 'tanh' if gelu == 'tanh' else 'none'
    self.mlp.add_module('act', nn.GELU(approximate))
    self.mlp.add_module('fc2', nn.Linear(hidden, dim))

  def forward(self, x: Tensor) -> Tensor:
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class VideoTransformer(nn.Module):
  """The classifier, [B, 3, F, H, W] -> logits [B, K].

  Args as the fields of `models.vivit.ViViT`, for variant 'joint' with the mean
  of its tokens and fixed positions.
  """

  def __init__(
    self,
    *,
    dim: int,
    depth: int,
    heads: int,
    num_classes: int,
    frames: int = 16,
    image_size: int = 224,
    patch: int = 16,
    tubelet: int = 2,
    mlp_ratio: float = 4.0,
    gelu: str = 'exact',
    norm_eps: float = 1e-6,
    last_norm_eps: float | None = None,
    mira: MiraConfig | None = None,
    mira_last_blocks: int | None = None,
  ):
    super().__init__()
    size = (tubelet, patch, patch)
    slots, places = frames // tubelet, (image_size // patch) ** 2
    self.patch_embed = nn.Module()
    self.patch_embed.proj = nn.Conv3d(3, dim, size, stride=size)
    positions = _sinusoid(slots * places, dim)
    self.register_buffer('positions', positions, persistent=False)
    first = 0 if mira_last_blocks is None else max(0, depth - mira_last_blocks)
    self.blocks = nn.ModuleList(
      Block(
        dim,
        int(dim * mlp_ratio + 1e-6),  # a rounded quotient is whole
        gelu,
        norm_eps,
        Attention(dim, heads, slots, mira if i >= first else None),
      )
      for i in range(depth)
    )
    eps = norm_eps if last_norm_eps is None else last_norm_eps
    self.fc_norm = nn.LayerNorm(dim, eps=eps)
    self.head = nn.Linear(dim, num_classes)

  def forward(self, video: Tensor) -> Tensor:
    x = self.patch_embed.proj(video).flatten(2).mT
    x = x + self.positions.to(x.dtype)
    for block in self.blocks:
      x = block(x)
    return self.head(self.fc_norm(x.mean(1)))


def _sinusoid(length: int, dim: int) -> Tensor:
  """Fixed positions [L, C] (docs/method.md, 5)."""
  channel = torch.arange(dim, dtype=torch.float64)
  place = torch.arange(length, dtype=torch.float64)[:, None]
  angle = place / 10000 ** (2 * (channel // 2) / dim)
  even = channel % 2 == 0
  return torch.where(even, angle.sin(), angle.cos()).float()


def _normalised(x: Tensor) -> Tensor:
  return x / x.sum(-1, keepdim=True).clamp(min=1e-12)
