"""One command, `stillroom NAME ...`; the scripts of a checkout call the same functions."""
