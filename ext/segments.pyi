class Segment:
    """One mapped segment of a spool. Other kernels use it; from Python there is nothing to do with it."""
