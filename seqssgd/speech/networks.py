"""The networks that can be trained to recognise speech."""

from typing import Any

import torch

from ..errors import UserError
from ..networks import Networks, check_shape, probing

# A network takes the size of a frame of features and the number of labels, and reads (features (B, T, F), lengths (B,))
# to (logits (B, T', V), their lengths), with T' = ceil(T / ``subsampling``). ``receptive_field()``, where it has that,
# says how a long recording may be cut.
NETWORKS = Networks(
    {
        "sgcn": "seqssgd.models.sgcn:SimpleGatedConvNet",
        "conformer": "seqssgd.models.conformer:Conformer",
    },
    given=("input_size", "output_size"),
)


def check_network(name: str, network: Any, input_size: int, output_size: int) -> None:
    """Makes sure that a network, on the CPU, gives what is said above, by a look at two short utterances of silence.

    Raises:
        UserError: it does not.
    """
    whose = f"model.network.name: {name!r}"
    factor = getattr(network, "subsampling", None)
    if not isinstance(factor, int) or factor < 1:
        raise UserError(f"{whose} needs subsampling, the frames that it reads for one of its logits; set it")
    batch = 2 if output_size != 2 else 3
    frames = 40 if output_size != 40 else 41  # T'; (T' - 1) · factor + 1 is the least T that has as many
    lengths = torch.tensor([(frames - 1) * factor + 1, 20 * factor, 20 * factor][:batch])
    with probing(network):
        given = network(torch.zeros(batch, int(lengths[0]), input_size), lengths)
    if not (isinstance(given, tuple) and len(given) == 2):
        raise UserError(
            f"{whose} gives a {type(given).__name__}; wanted two things: logits (B, T', V), and their lengths (B,)"
        )
    check_shape(whose, "logits", given[0], {"B": batch, "T'": frames, "V": output_size})
    check_shape(whose, "lengths", given[1], {"B": batch})
    if given[1].tolist() != [frames, 20, 20][:batch]:
        raise UserError(
            f"{whose} gives lengths {given[1].tolist()} for {lengths.tolist()} frames; wanted T / {factor}, rounded "
            f"up: {[frames, 20, 20][:batch]}"
        )
