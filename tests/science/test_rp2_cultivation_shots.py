"""Cultivation on RP^2: post-selection, decoding, the cluster gap, volume, and the method from the command line."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import stim

import stillroom
from stillroom.cli import main
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.run import Run
from stillroom.runtime import Runtime
from stillroom.science.rp2_cultivation import (
    Cultivated,
    Injection,
    MagicState,
    Noise,
    OwnCircuit,
    RP2Cultivation,
)
from stillroom.science.rp2_cultivation.circuits import to_stim
from stillroom.science.rp2_cultivation.figures import curve_of_cuts, layout, pictures, slope
from stillroom.science.rp2_cultivation.gap import DECIBEL, ClusterGap
from stillroom.science.rp2_cultivation.growth import cultivation
from stillroom.science.rp2_cultivation.product import build
from stillroom.science.rp2_cultivation.sampling import (
    Tally,
    decoding_model,
    interval,
    joined,
    qubit_layers,
    read_stages,
)


@pytest.fixture(scope="module")
def grown() -> Cultivated:
    """3 to 7 at p = 2e-3."""
    return build(3, 7, 3, True, 16.0, Noise.uniform(2e-3))


# -- rates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "p", "shots", "acceptance"),
    [
        ((3, 0, 0, True), 1e-3, 200_000, 0.514),
        ((3, 0, 0, True), 3e-3, 200_000, 0.136),
        ((5, 0, 0, True), 1e-3, 100_000, 0.0945),
    ],
)
def test_the_acceptance_is_the_published_one(sizes: tuple, p: float, shots: int, acceptance: float) -> None:
    """MSC-3 and MSC-5 at p = 1e-3: 0.514 and 0.0945 in the authors' sample files (2e9 and 2.1e12 shots)."""
    tally = build(*sizes, 0.0, Noise.uniform(p)).sampler().tally(shots, seed=100)
    low, high = interval(tally.counts()[0], shots, level=0.9999)
    assert low < acceptance < high


def test_the_discards_by_stage_are_the_published_ones() -> None:
    """D0 to D5 of the authors' 2e9 shots at p = 1e-3."""
    published = np.array([175997570, 162698743, 118394734, 259236009, 158879940, 96745606]) / 2e9
    shots = 300_000
    tally = build(3, 0, 0, True, 0.0, Noise.uniform(1e-3)).sampler().tally(shots, seed=100)
    for seen, share in zip(tally.discards.tolist(), published, strict=True):
        low, high = interval(seen, shots, level=0.9999)
        assert low < share < high


def test_without_checks_the_error_goes_with_p_and_is_the_published_one() -> None:
    tallies = [
        build(3, 0, 0, False, 0.0, Noise.uniform(p)).sampler().tally(200_000, 100) for p in (2e-3, 8e-3)
    ]
    kept, errors = tallies[0].counts()
    low, high = interval(errors, kept, level=0.9999)
    assert low < 7.3e-3 < high
    assert slope([2e-3, 8e-3], tallies) == pytest.approx(1.0, abs=0.1)


def test_with_the_check_the_error_is_a_hundred_times_smaller() -> None:
    kept, errors = build(3, 0, 0, True, 0.0, Noise.uniform(4e-3)).sampler().tally(1_500_000, 100).counts()
    low, high = interval(errors, kept, level=0.999)
    assert low < 6.1e-5 < high
    assert high < 1.46e-2 / 50  # Without: 1.46e-2.


def test_shots_are_a_function_of_the_seed() -> None:
    product = build(3, 0, 0, True, 0.0, Noise.uniform(3e-3))
    first, again, other = (product.sampler().tally(20_000, seed) for seed in (1, 1, 2))
    assert (first.discards == again.discards).all()
    assert (first.discards != other.discards).any()
    assert first.shots == first.discards.sum() + len(first.wrong)


def test_without_noise_every_shot_is_kept_and_right() -> None:
    tally = build(3, 7, 1, True, 1.0, Noise.uniform(0.0)).sampler(gaps=False).tally(100, 1)
    assert tally.counts() == (100, 0)


def test_post_selection_agrees_with_sinters_mask() -> None:
    product = build(3, 0, 0, True, 0.0, Noise.uniform(3e-3))
    events, flips = product.circuit.compile_detector_sampler(seed=5).sample(5000, separate_observables=True)
    kept = ~events.any(axis=1)
    assert product.sampler().tally(5000, 5).counts() == (kept.sum(), flips[kept].sum())


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (3, 10), (1, 1000)])
def test_clopper_pearson_bounds_have_their_tails(hits: int, trials: int) -> None:
    low, high = interval(hits, trials)

    def at_most(count: int, p: float) -> float:
        return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count + 1))

    assert low == 0 if hits == 0 else 1 - at_most(hits - 1, low) == pytest.approx(0.025)
    assert high == 1 if hits == trials else at_most(hits, high) == pytest.approx(0.025)


# -- decoding and the gap ---------------------------------------------------------------------------------------


def test_the_decoding_model_knows_no_post_selected_detector(grown: Cultivated) -> None:
    places, model = grown.circuit.get_detector_coordinates(), decoding_model(grown.circuit)
    for line in model.flattened():
        groups: list[list[int]] = [[]]
        for target in line.targets_copy() if line.type == "error" else []:
            if target.is_separator():
                groups.append([])
            elif target.is_relative_detector_id():
                groups[-1].append(target.val)
        assert all(len(places[i]) == 3 for group in groups for i in group)
        assert all(len(group) <= 2 for group in groups)


def test_the_gap_of_a_shot_without_events_is_that_of_the_bare_graph(grown: Cultivated) -> None:
    """46.7 dB at p = 2e-3, as in the published circuit."""
    gap = grown.sampler().gap
    assert gap is not None
    assert gap([]) == gap.bare == pytest.approx(46.7188, abs=1e-4)


def line_graph(weights: list[float], flips: int) -> ClusterGap:
    """A chain from the boundary through len(weights) - 1 nodes back to it; one edge flips."""
    n = len(weights) - 1
    ends = [n, *range(n), n]
    return ClusterGap(n, [(ends[i], ends[i + 1], w, i == flips) for i, w in enumerate(weights)])


def test_on_a_chain_the_gap_is_what_is_left_of_it() -> None:
    chain = line_graph([1.0, 2.0, 3.0, 4.0], flips=1)
    assert chain.bare == pytest.approx(10 * DECIBEL)
    # One event grows until it touches the boundary at its left, and as far to its right.
    assert chain([0]) == pytest.approx(8 * DECIBEL)
    # Two events meet in the middle of their edge of weight 2 before the left one reaches the boundary (at 1: a tie).
    assert line_graph([1.5, 2.0, 3.0, 4.0], flips=0)([0, 1]) == pytest.approx((10.5 - 1 - 2 - 1) * DECIBEL)


def test_even_clusters_stop_and_odd_ones_go_on() -> None:
    ring = ClusterGap(4, [(0, 1, 1.0, True), (1, 2, 1.0, False), (2, 3, 1.0, False), (3, 0, 1.0, False)])
    assert ring.grown([0, 1]).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert ring([0, 1]) == pytest.approx(2 * DECIBEL)
    assert ring.grown([0, 2]).tolist() == [1.0] * 4
    assert ring([0, 2]) == pytest.approx(0, abs=1e-6)


def test_an_even_number_of_flips_is_no_logical_cycle() -> None:
    trivial = ClusterGap(3, [(0, 1, 1.0, True), (1, 2, 1.0, True), (2, 0, 1.0, False)])
    assert trivial.bare == math.inf
    assert ClusterGap(3, [(0, 1, 1.0, False), (1, 2, 1.0, False)]).bare == math.inf


def brute_force(nodes: int, edges: list[tuple[int, int, float, bool]]) -> float:
    """The lightest set of edges that flips oddly and meets every node evenly, the boundary too."""
    best = math.inf
    for chosen in itertools.product((False, True), repeat=len(edges)):
        picked = [edge for edge, take in zip(edges, chosen, strict=True) if take]
        ends = np.bincount([end for edge in picked for end in edge[:2]], minlength=nodes + 1)
        if sum(edge[3] for edge in picked) % 2 and not (ends % 2).any():
            best = min(best, sum(edge[2] for edge in picked))
    return best * DECIBEL


@pytest.mark.parametrize("seed", range(12))
def test_the_shortest_logical_cycle_is_the_lightest_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = list(itertools.combinations(range(6), 2))
    edges = [
        (*pairs[i], float(random.uniform(0.1, 3)), bool(random.random() < 0.4))
        for i in random.choice(len(pairs), 11, replace=False)
    ]
    assert ClusterGap(5, edges).bare == pytest.approx(brute_force(5, edges))


def test_a_large_gap_is_less_often_wrong(grown: Cultivated) -> None:
    """At p = 2e-3 a fifth of the shots holds most of the errors: the claim's direction, on few shots."""
    tally = grown.sampler().tally(6000, seed=100)
    cut = float(np.quantile(tally.gaps, 0.2))
    kept, errors = tally.counts()
    assert 0.8 * kept - 40 <= tally.counts(cut)[0] <= kept
    assert errors > 10
    assert tally.counts(cut)[1] < errors / 3
    assert tally.gaps.max() <= grown.sampler().gap.bare + 1e-6  # type: ignore[union-attr]


# -- volume -----------------------------------------------------------------------------------------------------


def tally_of(shots: int, discards: list[int], kept: int, gaps: float = math.inf) -> Tally:
    nothing = np.zeros(kept, dtype=bool)
    return Tally(shots, np.array(discards), nothing, np.full(kept, gaps), np.zeros(kept, dtype=np.int64))


def test_volume_counts_what_was_discarded_with_the_stage_in_which_it_was() -> None:
    tally = tally_of(100, [40, 30], 30)
    assert tally.reached().tolist() == pytest.approx([1.0, 0.6])
    assert tally.volume([10, 20]) == pytest.approx((10 * 100 + 20 * 60) / 30)
    assert tally_of(100, [0, 0], 100).volume([10, 20]) == pytest.approx(30)
    assert tally_of(10, [10], 0).volume([5]) == math.inf


def test_a_cut_divides_the_volume_by_what_it_keeps() -> None:
    tally = joined([tally_of(50, [0], 50, gaps=20.0), tally_of(50, [0], 50, gaps=5.0)])
    assert tally.volume([7], cut=10.0) == pytest.approx(14)


def test_stages_and_costs_can_be_read_off_a_circuit() -> None:
    program = cultivation(3, 7, 3)
    stages, costs = read_stages(to_stim(program, Noise.uniform(1e-3)))
    assert costs == qubit_layers(program)
    assert [stage.decoded for stage in stages] == [False] * 5 + [True]


def test_the_curve_of_cuts_starts_at_none_and_rises(grown: Cultivated) -> None:
    tally = grown.sampler().tally(1500, seed=100)
    attempts, errors, bounds = curve_of_cuts(tally)
    kept, wrong = tally.counts()
    assert attempts[0] == tally.shots / kept
    assert errors[0] == wrong / kept
    assert attempts == sorted(attempts)
    assert all(low <= error <= high for error, (low, high) in zip(errors, bounds, strict=True))


# -- the method -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"distance": 4},
            "code distance 4 is not supported: pass --method.distance 3 or --method.distance 5, the",
        ),
        ({"surface": 5}, "--method.surface is 5: pass an odd distance from 7, or 0 for no growth"),
        ({"surface": 8}, "--method.surface is 8: pass an odd distance from 7, or 0 for no growth"),
        ({"distance": 5}, "--method.surface is 7: pass an odd distance from 9, or 0 for no growth"),
        ({"rounds": -1}, "--method.rounds is -1: pass 0 or more"),
        ({"gap": -2.0}, "--method.gap is -2.0: pass 0 or more"),
    ],
)
def test_sizes_that_do_not_exist_are_one_line(options: dict, line: str) -> None:
    with pytest.raises(UserError) as error:
        RP2Cultivation(**options).check()
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", [{"p": -0.1}, {"p": 0.2}, {"shots": 3}, {"sweep": (0.0,)}, {"data": "nowhere"}]
)
def test_noise_and_shots_out_of_range_are_told(options: dict) -> None:
    with pytest.raises(UserError, match=r"--task\."):
        MagicState(**options).check(0, False)


@pytest.mark.parametrize(
    "values", [{"two": 0.1}, {"p": 1}, [1, 2], {**dict.fromkeys(["two", "one", "idle", "reset"], 0)}]
)
def test_noise_of_other_fields_is_told(values: object) -> None:
    with pytest.raises(UserError, match="pass these five numbers"):
        Noise.read(values, "mine")  # type: ignore[arg-type]


def test_too_few_shots_to_keep_any_is_told() -> None:
    product = build(3, 0, 0, True, 0.0, Noise.uniform(0.05))
    with pytest.raises(UserError, match="none of 50 shots was kept"):
        product.numbers(product.sampler().tally(50, 1))


def run(method: RP2Cultivation | OwnCircuit, task: MagicState) -> Cultivated:
    return method.run(task, Fitter(method.default_engine(), task, 0)).product


def test_a_score_has_its_parts_and_pairs_over_seeds() -> None:
    task = MagicState(p=1e-3, shots=4000)
    product = run(RP2Cultivation(surface=0), task)
    score = task.score(product, "test", Runtime())
    assert len(score["per_sample"]) == 20
    assert score["kept"] == round(score["acceptance"] * 4000)
    assert score["logical_error_low"] <= score["logical_error"] <= score["logical_error_high"]
    assert score["attempts"] == pytest.approx(1 / score["acceptance"])
    assert task.score(product, "validation", Runtime())["shots"] == 1000
    assert task.paired(3).score(product, "test", Runtime())["kept"] != score["kept"]
    assert task.but(decides="volume").metric == "volume"


def test_the_baseline_has_the_same_growth_and_cut() -> None:
    method = RP2Cultivation(distance=5, surface=11, rounds=2, gap=30.0)
    baseline = method.baseline(MagicState())
    assert isinstance(baseline, Injection)
    assert [getattr(baseline, name) for name in ("distance", "surface", "rounds", "gap")] == [5, 11, 2, 30.0]
    assert run(Injection(surface=0), MagicState(p=1e-3)).made["checked"] is False


def test_noise_of_ones_own_reaches_its_operations(tmp_path: Path) -> None:
    noise = {"two": 0.01, "one": 0.0, "idle": 0.0, "reset": 0.0, "measure": 0.0}
    (tmp_path / "noise.json").write_text(json.dumps(noise))
    read = MagicState(data=str(tmp_path / "noise.json"))
    given = MagicState().using(data=noise)
    for task in (read, given):
        assert task.noise == Noise(**noise)
        circuit = str(run(RP2Cultivation(surface=0), task).circuit)
        assert "DEPOLARIZE2(0.01)" in circuit
        assert "X_ERROR" not in circuit


def test_exported_and_read_back_it_draws_the_same_shots(tmp_path: Path, grown: Cultivated) -> None:
    grown.save(tmp_path)
    again = MagicState.load(tmp_path)
    assert (again.stages, again.costs, again.gap, again.made) == (
        grown.stages,
        grown.costs,
        grown.gap,
        grown.made,
    )
    first, second = (p.sampler().tally(600, 3) for p in (grown, again))
    assert (first.discards == second.discards).all()
    # The text of a circuit has its coordinates and probabilities to six digits: gaps are equal to as many.
    assert first.gaps == pytest.approx(second.gaps, rel=1e-4)
    assert stim.DetectorErrorModel.from_file(tmp_path / "decoding.dem").num_errors > 100


def test_the_command_line_leaves_everything_a_user_takes_along(tmp_path: Path) -> None:
    out = tmp_path / "run"
    method = "--method.surface 7 --method.rounds 1 --method.gap 10"
    task = "--task.p 0.001 --task.shots 300 --task.sweep-shots 0"
    assert main(["run", "rp2-cultivation", *method.split(), *task.split(), "--out", str(out)]) == 0
    result = Run.open(out).result
    assert set(result["arms"]) == {"injection", "rp2-cultivation"}
    student = out / "student"
    rows = list(csv.DictReader((student / "discards.csv").open()))
    assert rows[0]["stage"] == "first round"
    assert rows[-1]["stage"] == "gap of at least 10 dB"
    gone = sum(int(row["discarded"]) for row in rows)
    assert 300 - gone == result["arms"]["rp2-cultivation"]["test"]["kept"]
    (stats,) = csv.DictReader((student / "stats.csv").open(), skipinitialspace=True)
    assert int(stats["shots"]) == 300
    assert int(stats["discards"]) == gone
    assert "S[T]" in (student / "README.md").read_text()
    assert Run.open(out).student().gap == 10.0


def test_sinter_reads_what_was_exported(tmp_path: Path) -> None:
    sinter = pytest.importorskip("sinter")
    task = MagicState(p=1e-3, shots=200, sweep_shots=0)
    stillroom.distill(None, None, "uniform", RP2Cultivation(surface=0), task=task, out=tmp_path / "run")
    (stats,) = sinter.read_stats_from_csv_files(tmp_path / "run" / "student" / "stats.csv")
    assert stats.shots == 200
    assert stats.discards == sum(stats.custom_counts.values())


def test_sinters_sampler_counts_as_we_do() -> None:
    sinter = pytest.importorskip("sinter")
    from stillroom.science.rp2_cultivation.sinter_sampler import CultivationSampler

    circuit = build(3, 7, 1, True, 0.0, Noise.uniform(1e-3)).circuit
    stats = CultivationSampler(gap=15.0).compiled_sampler_for_task(sinter.Task(circuit=circuit)).sample(500)
    assert stats.shots == 500
    assert stats.discards == sum(stats.custom_counts.values())
    assert 0.3 < 1 - stats.discards / 500 < 0.7


def test_a_circuit_of_ones_own_is_the_other_arm(tmp_path: Path) -> None:
    path = tmp_path / "own.stim"
    path.write_text(str(to_stim(cultivation(3), Noise.uniform(1e-3))))
    task = MagicState(p=1e-3, shots=2000, against=str(path))
    baseline = RP2Cultivation(surface=0).baseline(task)
    assert isinstance(baseline, OwnCircuit)
    own, mine = run(baseline, task), run(RP2Cultivation(surface=0), task)
    assert own.gap == 0.0
    assert task.score(own, "test", Runtime())["kept"] == task.score(mine, "test", Runtime())["kept"]
    (tmp_path / "bad.stim").write_text("H 0\nM 0")
    with pytest.raises(UserError, match="has 0 observables"):
        MagicState(against=str(tmp_path / "bad.stim")).check(0, False)


def test_a_detector_without_coordinates_is_told() -> None:
    with pytest.raises(UserError, match="give it"):
        read_stages(stim.Circuit("R 0\nM 0\nDETECTOR rec[-1]"))


def test_every_figure_is_drawn(grown: Cultivated) -> None:
    task = MagicState(p=2e-3, shots=300, sweep=(4e-3, 8e-3), sweep_shots=20_000)
    found = pictures(task, {"injection": run(Injection(), task), "rp2-cultivation": grown})
    titles = [figure["title"] for figure in found]
    assert titles == [
        "Error against attempts",
        "Error against noise",
        "Acceptance against noise",
        "Layout",
        "Space-time volume",
        "Why the gauge is fixed",
    ]
    assert all("<svg" in figure["svg"] for figure in found)
    assert "Slopes: injection" in found[1]["caption"]


def test_the_layout_draws_a_plaquette_a_check() -> None:
    from stillroom.science.rp2_cultivation.codes import surface_checks

    assert layout(surface_checks(7), 3, "t").count("<path") >= 48
