"""Several trained models of one base in one backbone (section 8)."""
