"""One HTML page, and figures for papers, from result records. No torch, no network."""
