"""Where to compute."""

import torch

from .errors import UserError


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for ``None`` CUDA if there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # the name alone does not tell whether it is there
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise UserError(f"the device {name} cannot be used here ({reason}); try cpu") from None
    return device
