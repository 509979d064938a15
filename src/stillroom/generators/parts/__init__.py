"""What several papers of this family share: processes, denoisers, solvers, samplers, stores."""
