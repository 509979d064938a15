"""One-step students whose samples match a distribution."""
