"""Plain networks, used by students and inside teachers; pictures come in as RGB in [0, 1]."""
