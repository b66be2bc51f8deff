"""Whether a cache pays, and with which codecs: measured on a sample, then arithmetic."""
