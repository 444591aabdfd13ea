"""One verb a file: what `dlrun VERB` does, by calling the rooms below."""
