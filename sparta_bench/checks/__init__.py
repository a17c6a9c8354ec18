"""Every check of a configuration that needs nothing loaded."""
