"""What runs and `merge` left in folders: written, read, checked."""
