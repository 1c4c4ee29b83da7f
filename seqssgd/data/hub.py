"""Data sets of the Hugging Face hub, or in its formats on disk."""

import sys
from collections.abc import Mapping
from pathlib import Path

from seqssgd.errors import UserError

SPLITS = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}  # ours: what they call it


def load_hub(name: str, config: str | None = None) -> Mapping:
    """The splits of a data set (``datasets.Dataset`` by name): one of the hub, a local one, or one saved to disk.

    Raises:
        UserError: the package datasets is not there, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise UserError("--hub needs the package datasets: pip install 'seqssgd[recipes]'") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))  # by save_to_disk
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # the hub, the network, the cache and the data's own reader each raise their own
        error = error.__cause__ or error  # which datasets wraps in one that says no more than that there is one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--hub {name} could not be loaded: {reason}") from None
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}
