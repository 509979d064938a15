"""Few-step students that follow their teacher's trajectories."""
