"""Text in two languages, line by line: reading it, subwords, decoding and scores."""
