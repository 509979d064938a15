"""Flow models: couplings, reflow, straight paths."""
