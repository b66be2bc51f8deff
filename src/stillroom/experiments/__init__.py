"""Several recipes and seeds: what is missing on disk, in dependency order, one command after
another.
"""
