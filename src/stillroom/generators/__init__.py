"""Diffusion and flow models, and what they are distilled into."""
