"""The sampler as sinter takes it: `sinter.collect(..., custom_decoders={"cultivation": CultivationSampler()})`.

Importing this file imports sinter. Detectors with four coordinates are post-selected, the others decoded; a task's own
post-selection masks are not looked at.
"""

from __future__ import annotations

import time

import numpy as np
import sinter

from stillroom.science.rp2_cultivation.circuits import Stage
from stillroom.science.rp2_cultivation.sampling import Sampler, read_stages


class CultivationSampler(sinter.Sampler):
    """Discards by stage, decodes the rest, and drops shots whose cluster gap is below `gap` dB."""

    def __init__(self, gap: float = 0.0) -> None:
        self.gap = gap

    def compiled_sampler_for_task(self, task: sinter.Task) -> sinter.CompiledSampler:
        """Bound to the circuit of a task."""
        assert task.circuit is not None
        stages, _ = read_stages(task.circuit)
        return _Compiled(Sampler(task.circuit, stages, self.gap > 0), stages, self.gap)


class _Compiled(sinter.CompiledSampler):
    def __init__(self, sampler: Sampler, stages: list[Stage], gap: float) -> None:
        self.sampler, self.stages, self.gap = sampler, stages, gap

    def sample(self, suggested_shots: int) -> sinter.AnonTaskStats:
        """Fresh shots; sinter asks for no seed."""
        began = time.monotonic()
        tally = self.sampler.tally(suggested_shots, int(np.random.SeedSequence().generate_state(1)[0]))
        kept, errors = tally.counts(self.gap)
        return sinter.AnonTaskStats(
            shots=suggested_shots,
            errors=errors,
            discards=suggested_shots - kept,
            seconds=time.monotonic() - began,
            custom_counts=tally.custom_counts(self.stages, self.gap),
        )
