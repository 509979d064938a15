"""Audits: what distilling did to a model's robustness, privacy, bias and fairness."""
