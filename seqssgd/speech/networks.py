"""The networks that can be trained to recognise speech."""

from ..networks import Networks

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
