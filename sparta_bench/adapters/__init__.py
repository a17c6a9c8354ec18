"""What a run or `merge` left in a folder: written, read, checked, merged, exported."""
