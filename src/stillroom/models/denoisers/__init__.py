"""Networks that denoise: noisy samples, a time, a condition and a guidance scale in; a tensor like the samples out."""

from __future__ import annotations

from stillroom.models.denoisers.names import build_denoiser_network, network_from_config

__all__ = ["build_denoiser_network", "network_from_config"]
