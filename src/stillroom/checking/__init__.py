"""Whether a cache still is what was said: every byte, every key, some rows asked again; mending."""
