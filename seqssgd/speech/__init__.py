"""Speech recognition: features, tokens, decoding."""
