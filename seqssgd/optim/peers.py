"""The methods that S-SGD is compared with, under the same protocol."""

from collections.abc import Sequence

from .passes import MultiPassOptimizer


class SinglePass(MultiPassOptimizer):
    """The base optimizer under the same protocol: one pass, nothing moved. For loops that serve every method.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = SinglePass(torch.optim.SGD([weight], lr=0.1))
    >>> for _ in optimizer.passes():
    ...     (weight**2).sum().backward()
    >>> optimizer.step()
    >>> weight.tolist()
    [1.600000023841858]
    """

    level_key = "unperturbed"

    def _signs(self) -> Sequence[int]:
        return (0,)
