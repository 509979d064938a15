"""From noise to data and back: deterministic solvers of the probability-flow ODE on any process.

A solver goes along a grid of times, downwards to data or upwards to noise. The field that it asks is any function
(x [n, ...], t [n]) -> Estimate, guided or not. It leaves everything else (noise, conditions, cost) to its caller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from stillroom.errors import UserError, require
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.process import Process, along
from stillroom.seeds import seed_of

Field = Callable[[Tensor, Tensor], Estimate]
Spacing = Literal["uniform", "karras", "log-snr"]
Solver = Literal["ddim", "renoised", "anchored", "anchored-heun", "euler", "heun", "dpm++2m", "adaptive"]
See = Callable[[Tensor], None]
"""Is shown x after each step."""


def grid(
    process: Process, steps: int, start: float, end: float = 0.0, spacing: Spacing = "uniform"
) -> Tensor:
    """Times [steps + 1] from `start` down to `end`, float64.

    'uniform' in t; 'karras' uniform in the 7th root of sigma/alpha from `start` to the process's least noise
    level, then `end` (Karras et al., 2022, arXiv:2206.00364, eq. 5); 'log-snr' likewise, uniform in the
    logarithm. The last two want a finite noise level at `start`. Raises UserError for less than one step.
    """
    require("steps", steps, 1)
    if spacing == "uniform":
        return torch.linspace(start, end, steps + 1, dtype=torch.float64)
    first = float(process.ratio(torch.tensor(start, dtype=torch.float64)))
    last = getattr(process, "sigma_min", 0.002)
    first = min(first, 1e5)
    place = torch.linspace(0, 1, steps, dtype=torch.float64)
    if spacing == "karras":
        levels = (first ** (1 / 7) + place * (last ** (1 / 7) - first ** (1 / 7))) ** 7
    else:
        levels = first * (last / first) ** place
    times = process.time_at(levels)
    times[0] = start
    return torch.cat([times, times.new_tensor([end])])


@dataclass(frozen=True)
class Way:
    """How to go: the process, the field, and who watches."""

    process: Process
    field: Field
    see: See | None = None

    def ask(self, x: Tensor, t: Tensor) -> Estimate:
        """The field at one time for all samples."""
        return self.field(x, t.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(len(x)))

    def show(self, x: Tensor) -> Tensor:
        """Let the watcher see `x`; returns it."""
        if self.see is not None:
            self.see(x)
        return x


def ddim_step(at: Estimate, s: Tensor) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps: one DDIM step to time `s` ([n] or a scalar), up or down.

    Song et al., 2021, arXiv:2010.02502, eq. 12 with eta = 0. At s = 0 it is x0.
    """
    alpha, sigma = at.process.alpha(s), at.process.sigma(s)
    # eps from x0 divides by sigma_t: equal, and safe at a small t, with the noise left in x_t scaled instead
    if at.kind == "x0":
        t_alpha, t_sigma = along(at.process.alpha(at.t), at.x), along(at.process.sigma(at.t), at.x)
        share = along(sigma, at.x) / t_sigma
        return share * at.x + (along(alpha, at.x) - t_alpha * share) * at.x0
    if at.kind == "velocity" and at.process.name == "flow":
        return at.x + along(s - at.t, at.x) * at.value
    return along(alpha, at.x) * at.x0 + along(sigma, at.x) * at.eps


def ancestral_step(at: Estimate, s: Tensor, z: Tensor, eta: float = 1.0) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z: a DDIM step down with fresh unit noise `z` [n, ...].

    tau^2 = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2); eta 0 is `ddim_step`, 1 DDPM's
    ancestral sampling (Song et al., 2021, arXiv:2010.02502, eq. 12 and 16). Times [n] or scalars, s < t.
    """
    process = at.process
    alpha, sigma, t_sigma = process.alpha(s), process.sigma(s), process.sigma(at.t)
    fresh = (sigma / t_sigma).square() * (t_sigma.square() - (process.alpha(at.t) / alpha * sigma).square())
    fresh = eta**2 * fresh.clamp_min(0)
    kept = (sigma.square() - fresh).clamp_min(0).sqrt()
    known = along(alpha, at.x) * at.x0
    return known + along(kept, at.x) * at.eps + along(fresh.sqrt(), at.x) * z


def ddim(way: Way, x: Tensor, times: Tensor) -> Tensor:
    """DDIM along `times`; first order."""
    for t, s in pairwise(times):
        x = way.show(ddim_step(way.ask(x, t), s))
    return x


def forward_step(process: Process, x: Tensor, s: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """x_t of x_s [n, ...] with fresh unit noise `z` [n, ...]: the exact transition up, s < t, [n] or scalars.

    (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z.
    """
    share = process.alpha(t) / process.alpha(s)
    fresh = (process.sigma(t).square() - (share * process.sigma(s)).square()).clamp_min(0).sqrt()
    return along(share, x) * x + along(fresh, x) * z


def row_noise(x: Tensor, step: int) -> Tensor:
    """Unit noise like `x` [n, ...], each row a function of that row of `x` and of `step` alone."""
    rows = []
    for row in x.detach().cpu():
        key = int.from_bytes(
            hashlib.sha256(row.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()[:8], "little"
        )
        rows.append(torch.randn(row.shape, generator=torch.Generator().manual_seed(seed_of(key, step))))
    return torch.stack(rows).to(x) if rows else x.clone()


def renoised(way: Way, x: Tensor, times: Tensor) -> Tensor:
    """DDIM steps of double length, each but the last followed by noise up one step: as many evaluations as steps.

    For students of jumps over two steps of the grid (Meng et al., 2023, arXiv:2210.03142, section 3.2; Karras et al.,
    2022, arXiv:2206.00364, algorithm 2). The noise is a function of each row of `x` at the start, so that samples
    do not depend on how a batch is cut.
    """
    start, last = x, len(times) - 1
    for i in range(last):
        x = ddim_step(way.ask(x, times[i]), times[min(i + 2, last)])
        if i + 2 <= last:
            x = forward_step(way.process, x, times[i + 2], times[i + 1], row_noise(start, i))
        x = way.show(x)
    return x


def anchored(way: Way, x: Tensor, times: Tensor) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps with the noise that x started from: for students of fixed pairs of noise and data.

    Lee et al., 2024, arXiv:2405.20320, section 4.3 (their new update rule). One step is DDIM's.
    """
    process = way.process
    eps = x / along(process.sigma(times[0]), x)
    for t, s in pairwise(times):
        x0 = way.ask(x, t).x0
        x = way.show(along(process.alpha(s), x) * x0 + along(process.sigma(s), x) * eps)
    return x


def anchored_heun(way: Way, x: Tensor, times: Tensor) -> Tensor:
    """`anchored` with Heun's correction: each x0 from the mean of two velocities; the step into t = 0 has one.

    For the flow process, whose x0 is x_t - t u (the authors' sampler 'new' with solver 'heun').
    """
    process = way.process
    eps = x / along(process.sigma(times[0]), x)

    def moved(x0: Tensor, s: Tensor) -> Tensor:
        return along(process.alpha(s), x) * x0 + along(process.sigma(s), x) * eps

    for t, s in pairwise(times):
        at = way.ask(x, t)
        x0 = at.x0
        if s > 0:
            slope = (at.velocity + way.ask(moved(x0, s), s).velocity) / 2
            x0 = Estimate(process, x, at.t, "velocity", slope).x0
        x = way.show(moved(x0, s))
    return x


def euler(way: Way, x: Tensor, times: Tensor) -> Tensor:
    """Euler's rule for dx/dt; first order. For flow and variance exploding processes it is DDIM."""
    for t, s in pairwise(times):
        x = way.show(x + (s - t).to(x) * way.ask(x, t).velocity)
    return x


def heun(way: Way, x: Tensor, times: Tensor) -> Tensor:
    """Heun's rule; second order; the step into t = 0 is Euler's (Karras et al., 2022, algorithm 1)."""
    for t, s in pairwise(times):
        slope = way.ask(x, t).velocity
        ahead = x + (s - t).to(x) * slope
        if s > 0:
            slope = (slope + way.ask(ahead, s).velocity) / 2
            ahead = x + (s - t).to(x) * slope
        x = way.show(ahead)
    return x


def dpm_solver_2m(way: Way, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095, algorithm 2); second order.

    The first step, and one into t = 0, are of first order.
    """
    process, before, last_h = way.process, None, torch.tensor(torch.inf)
    for t, s in pairwise(times):
        at = way.ask(x, t)
        decay = process.sigma(s) * process.alpha(t) / (process.alpha(s) * process.sigma(t))  # e^{-h}
        h = -decay.log()
        goal = at.x0
        if before is not None and s > 0:
            half = 0.5 * h / last_h  # 1 / (2 r)
            goal = (1 + half).to(x) * goal - half.to(x) * before
        share = (process.sigma(s) / process.sigma(t)).to(x)
        x = way.show(share * x + (process.alpha(s) * (1 - decay)).to(x) * goal)
        before, last_h = at.x0, h
    return x


def adaptive(way: Way, x: Tensor, times: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Runge-Kutta of order 5(4) with steps of its own, to the given times: the reference.

    scipy's RK45 with rtol = atol = `tolerance`, in float64, over the whole batch as one system. Into t = 0 it
    goes to a thousandth of the way before it and takes x0 from there.
    """
    from scipy.integrate import solve_ivp

    ends = [float(t) for t in times]
    into_data = ends[-1] == 0
    stop = 1e-3 * min(ends[0], 1.0) if into_data else ends[-1]

    def slope(t: float, flat: object) -> object:
        now = torch.as_tensor(flat, dtype=torch.float64).reshape(x.shape).to(x)
        found = way.ask(now, torch.tensor(t, dtype=torch.float64)).velocity
        return found.double().cpu().flatten().numpy()

    with torch.no_grad():
        flat = x.detach().double().cpu().flatten().numpy()
        found = solve_ivp(slope, (ends[0], stop), flat, method="RK45", rtol=tolerance, atol=tolerance)
        if not found.success:
            raise UserError(f"the adaptive solver gave up ({found.message}): pass a fixed-step solver")
        x = torch.as_tensor(found.y[:, -1]).reshape(x.shape).to(x)
        if into_data:
            x = way.ask(x, torch.tensor(stop, dtype=torch.float64)).x0
    return way.show(x)


SOLVERS: dict[str, Callable[[Way, Tensor, Tensor], Tensor]] = {
    "ddim": ddim,
    "renoised": renoised,
    "anchored": anchored,
    "anchored-heun": anchored_heun,
    "euler": euler,
    "heun": heun,
    "dpm++2m": dpm_solver_2m,
    "adaptive": adaptive,
}


def evaluations(solver: str, steps: int) -> int:
    """Evaluations of the field over `steps` steps into t = 0; of 'adaptive' they are its own, and 0 here."""
    return {"heun": 2 * steps - 1, "anchored-heun": 2 * steps - 1, "adaptive": 0}.get(solver, steps)


def two_steps_as_one(process: Process, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The x0 for which one DDIM step from (x_t, t) lands on (x_s, s).

    Salimans and Ho, 2022, arXiv:2202.00512, appendix G; at s = 0 it is x_s. Times [n] or scalars, s < t.
    """
    share = along(process.sigma(s) / process.sigma(t), x_t)
    return (x_s - share * x_t) / (along(process.alpha(s), x_t) - share * along(process.alpha(t), x_t))
