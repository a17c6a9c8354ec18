"""Tables, comparisons and pictures from result records. No torch, no GPU, no network."""
