"""Models: where checkpoints come from, and how they are prompted."""
