"""Finding, decoding and augmenting images that have labels."""
