"""Ranks of what fine-tuning changed, from checkpoints alone (appendix A, Tables 7 and 8)."""
