"""One run a file; each holds ``CONFIG`` and, in its docstring, where it comes from."""
