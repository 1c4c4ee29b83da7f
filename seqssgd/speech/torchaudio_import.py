"""torchaudio's Python part, whatever torch it is installed beside.

torchaudio's wheel on PyPI is linked against CUDA, so its C++ extension does not load beside a CPU-only torch and
``import torchaudio`` fails. Filter banks, resampling and the other transforms are written in Python and do not need it.
"""

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from ..errors import UserError, not_installed


@functools.cache
def import_torchaudio() -> ModuleType:
    """The package torchaudio, without its C++ extension if that does not load.

    Raises:
        UserError: it is not installed, or cannot be imported at all.
    """
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError as error:
        if error.name == "torchaudio":
            raise not_installed(error) from None
    except (ImportError, OSError, RuntimeError):  # a library that is missing, or made for another CUDA or torch
        pass
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules["torchaudio._extension"] = _without_extension()
    try:
        return importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"torchaudio cannot be imported beside torch {torch.__version__} ({reason}): pip install 'seqssgd[recipes]'"
        ) from None


def _without_extension() -> ModuleType:
    """What ``torchaudio._extension`` is where torchaudio was built without it."""

    def absent(*_: object, **__: object) -> None:
        raise RuntimeError("torchaudio was imported without its C++ extension, which this function needs")

    module: Any = ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = module._IS_ALIGN_AVAILABLE = False
    module._load_lib = lambda name: False
    module.fail_if_no_align = lambda function: functools.wraps(function)(absent)
    return module
