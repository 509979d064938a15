"""Guidance and control, distilled."""
