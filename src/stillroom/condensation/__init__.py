"""Data-set distillation: a small set that trains a network as a large one would."""
