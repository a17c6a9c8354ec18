"""What merging costs, for pairs of runs (section 8, Table 6)."""
