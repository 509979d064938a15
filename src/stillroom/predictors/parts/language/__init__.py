"""What the systems of language models share."""
