"""Stage 1: teachers said it once; this is where it is said and kept."""
