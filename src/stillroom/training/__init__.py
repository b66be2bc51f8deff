"""Stage 2: order, stream, loop, checkpoint, receipt."""
