"""Cultivation on RP^2: a logical T state of high fidelity without distillation.

What for: quantum computers whose error-corrected gates are Clifford need T states from elsewhere. In go a noise
strength and distances; out come a noisy stim circuit with its post-selected and its decoded detectors, its acceptance,
its logical error and what it costs in qubits times layers. Nothing is learned: what is refined is a quantum state.

The idea: inject a T state into a code of distance 3 that can be turned, by Bell pairs and three layers of CX, into a
self-dual code on which T on every qubit is a logical gate up to its Clifford frame. That gate's eigenvalue is measured
with flags and everything odd is discarded, so that only three faults at once get through. Then grow, on, if wanted, to
distance 5, and into a rotated surface code whose first round is decoded and not discarded; how sure the decoder was,
the cluster gap, decides what is kept. The code lives on the projective plane: opposite points of its rim are one.

Source: Chen, Chen, Lu and Pan, "Efficient Magic State Cultivation on RP^2", PRX Quantum 2026, arXiv:2503.18657; it
builds on Gidney, Shutty and Jones, "Magic state cultivation: growing T states as cheap as CNOT gates", 2024,
arXiv:2409.17595.

Deviations. The four circuits that the authors publish (MSC-3, MSC-5, 3 to 7, 5 to 11) come out of this code with the
same detectors and the same error mechanisms to the last digit of their probabilities, their idle layers included. The
soft output is the cluster gap on stock PyMatching's graph; the authors cut in two gaps from a changed PyMatching. Rates
are those of the S proxy, as in the paper; the true T is checked without noise on 15 qubits by state vector. Volume is
active qubits times layers, discards counted by stage; the paper's own table is in other units.
"""

from __future__ import annotations

from stillroom.science.rp2_cultivation.method import Injection, OwnCircuit, RP2Cultivation
from stillroom.science.rp2_cultivation.noise import Noise
from stillroom.science.rp2_cultivation.product import Cultivated
from stillroom.science.rp2_cultivation.task import MagicState

__all__ = ["Cultivated", "Injection", "MagicState", "Noise", "OwnCircuit", "RP2Cultivation"]
