"""From raw rows to padded batches: sources, splits, prompts, encoding, batches."""
