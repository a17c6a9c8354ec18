"""Memory of training: measured, by the paper's formula (section 5), and part by part."""
