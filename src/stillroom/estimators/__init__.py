"""Closed forms and likelihood fits, behind scikit-learn's interface."""
