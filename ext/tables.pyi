"""The files of a board. Other kernels use it; from Python there is nothing to do with it."""
