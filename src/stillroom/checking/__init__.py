"""Whether a cache still is what was kept: every byte, every key, some rows run again; mending."""
