"""The `coremat` command: parse, call the library, print. One short file per command; heavy imports inside functions."""
