"""What of a padded minibatch is there."""

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, frames), true where a frame lies within its utterance."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]
