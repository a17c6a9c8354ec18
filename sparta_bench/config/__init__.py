"""One experiment's configuration: composed from `conf/` and the command line, and checked."""
