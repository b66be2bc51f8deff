"""Stage 1: the frozen teachers run once over every picture, and what they answer is kept."""
