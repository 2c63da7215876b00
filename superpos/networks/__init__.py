"""Real representations: vision networks."""
