"""The networks that can be trained as language models."""

from ..networks import Networks

# A network takes the size of the vocabulary, and reads (tokens (T, B), state or None) to (logits (T, B, V), new state):
# a tuple of tensors with the batch in their second dimension, of the shapes that ``zero_state(batch)`` has, where a
# dimension that is 0 there is of any size.
NETWORKS = Networks(
    {
        "lstm": "seqssgd.models.lstm:LSTMLanguageModel",
        "gru": "seqssgd.models.gru:GRULanguageModel",
        "transformer": "seqssgd.models.transformer:TransformerLanguageModel",
    },
    given=("vocab_size",),
)
