"""Cultivation on RP^2: codes, circuits against the authors' published ones, and the true T by state vector.

The numbers of the published circuits (github Zihan-Chen-PhMA/Cultiv_T_RP2, folder circuit_garage, p = 1e-3) were read
from their error models with stim 1.16; equal to 1e-11, they and ours have the same mechanisms.
"""

from __future__ import annotations

import pytest
import stim

from stillroom.science.rp2_cultivation import codes, growth, stages
from stillroom.science.rp2_cultivation.circuits import Builder, Program, to_stim
from stillroom.science.rp2_cultivation.codes import Kind
from stillroom.science.rp2_cultivation.growth import GAUGE_5, cultivation, logical_y
from stillroom.science.rp2_cultivation.noise import Noise
from stillroom.science.rp2_cultivation.stages import GAUGE_3
from stillroom.science.rp2_cultivation.state_vector import check_chance, companion_state, gauge_table

QUIET = Noise.uniform(0.0)
KINDS: tuple[Kind, Kind] = ("X", "Z")
SIZES = ((3, 0, 0), (5, 0, 0), (3, 7, 3), (5, 11, 5))


def of_kind(d: int, kind: Kind) -> list[codes.Support]:
    return [check.support for check in codes.rp2_checks(d) if check.kind == kind]


def companion_sites(d: int) -> list[codes.Site]:
    return [*codes.grid(d), *(site for pack in codes.packs(d) for site in (pack.a, pack.b))]


# -- codes ------------------------------------------------------------------------------------------------------


def test_the_checks_of_distance_3_are_those_of_the_paper() -> None:
    def numbers(kind: Kind) -> set[tuple[int, ...]]:
        return {tuple(sorted(int(3 * (x + 1) + y + 1) for x, y in support)) for support in of_kind(3, kind)}

    assert numbers("X") == {(0, 1, 3, 4), (4, 5, 7, 8), (1, 2, 6, 7), (2, 3, 5, 6), (0, 8)}
    assert numbers("Z") == {(0, 3, 5, 8), (1, 2, 4, 5), (3, 4, 6, 7), (0, 1, 7, 8), (2, 6)}


@pytest.mark.parametrize("d", [3, 5, 7])
def test_rp2_codes_have_one_relation_a_type_one_logical_qubit_and_their_distance(d: int) -> None:
    sites = codes.grid(d)
    for kind, other in (("X", "Z"), ("Z", "X")):
        mine, theirs = of_kind(d, kind), of_kind(d, other)
        assert len(mine) == (d * d + 1) // 2
        assert len(codes.reduced(codes.masks(mine, sites))) == (d * d - 1) // 2
        assert not frozenset().union(*mine) ^ set(sites)
        product: frozenset[codes.Site] = frozenset()
        for support in mine:
            product = product ^ support
        assert not product
        assert sorted(map(len, mine)) == [2] + [4] * ((d * d - 1) // 2)
        assert all(len(a & b) % 2 == 0 for a in mine for b in theirs)
        assert all(len(codes.logical(other, d) & support) % 2 == 0 for support in mine)
        assert codes.distance(mine, codes.logical(kind, d), sites) == d
    assert len(codes.logical("X", d) & codes.logical("Z", d)) == 1


@pytest.mark.parametrize("d", [5, 7])
def test_the_surface_code_has_its_checks_and_its_distance(d: int) -> None:
    checks = codes.surface_checks(d)
    assert len(checks) == d * d - 1
    for kind in KINDS:
        mine = [c.support for c in checks if c.kind == kind]
        assert len(codes.reduced(codes.masks(mine, codes.grid(d)))) == (d * d - 1) // 2
        assert codes.distance(mine, codes.logical(kind, d), codes.grid(d)) == d


@pytest.mark.parametrize(("d", "qubits", "weights"), [(3, 15, {4, 6}), (5, 35, {4, 6, 8})])
def test_companions_are_self_dual_and_keep_the_distance(d: int, qubits: int, weights: set[int]) -> None:
    sites, new = companion_sites(d), codes.companion(d)
    assert len(sites) == qubits
    spans = [codes.reduced(codes.masks(new[kind], sites)) for kind in KINDS]
    assert spans[0] == spans[1]
    assert len(spans[0]) == (qubits - 1) // 2
    for kind in KINDS:
        assert {len(support) for support in new[kind]} == weights
        assert (
            codes.distance(new[kind], codes.pushed(kind, codes.logical(kind, d), codes.morph(d)), sites) == d
        )


def test_the_gauge_rule_of_distance_3_is_minus_on_weight_4_and_plus_on_weight_2() -> None:
    for check in codes.rp2_checks(3):
        wanted = -1 if check.kind == "Z" and len(check.support) == 4 else 1
        assert codes.gauge_sign(check, 3) == wanted


@pytest.mark.parametrize("d", [3, 5])
def test_the_tree_folds_every_qubit_onto_the_centre(d: int) -> None:
    assert codes.pushed("X", frozenset({(0, 0)}), codes.tree(d)[::-1]) == frozenset(companion_sites(d))


@pytest.mark.parametrize(
    "layers",
    [
        *(stages.round_layers(codes.rp2_checks(d)) for d in (3, 5)),
        *(stages.round_layers(codes.surface_checks(d)) for d in (7, 11)),
        *(kind(d) for kind in (codes.morph, codes.tree) for d in (3, 5)),
    ],
)
def test_no_two_gates_of_a_layer_share_a_qubit(layers: list[list[codes.Pair]]) -> None:
    for layer in layers:
        touched = [site for pair in layer for site in pair]
        assert len(touched) == len(set(touched))


@pytest.mark.parametrize("sizes", SIZES)
def test_no_layer_of_a_whole_circuit_touches_a_qubit_twice_or_forgets_one(
    sizes: tuple[int, int, int],
) -> None:
    for layer in cultivation(*sizes).layers:
        touched = [*layer.touched(), *layer.idle]
        assert len(touched) == len(set(touched)) <= layer.active


# -- circuits ---------------------------------------------------------------------------------------------------

PUBLISHED = {
    (3, 0, 0): (44, 747, 0.6643172980923707, 0.20081387271436443, 2.7911855985474534, 719.8978596537437),
    (5, 0, 0): (132, 2830, 2.354969018553187, 0.45677551363013297, 12.039684311924459, 4050.999515808243),
    (3, 7, 3): (252, 4167, 2.381080902990143, 0.39688177998309726, 6.691877699038631, 4027.104972008602),
    (5, 11, 5): (894, 16772, 8.508678459871422, 0.9197165705162187, 26.79483945987357, 39854.72343313292),
}
"""Detectors, mechanisms, and the sums of p, p if the observable flips, p x detectors, p (sum of x + 10 y)^2."""


def moments(circuit: stim.Circuit) -> tuple[float, ...]:
    """See PUBLISHED; the qubits of a Bell pair count as if they were at y = -4 and 4, wherever they are."""
    place = {}
    for i, (x, y, *_) in circuit.get_detector_coordinates().items():
        place[i] = x + 10 * (y if float(2 * y).is_integer() else 4 * (1 if y > 0 else -1))
    sums, count = [0.0] * 4, 0
    for line in circuit.detector_error_model().flattened():
        if line.type == "error":
            p, targets = line.args_copy()[0], line.targets_copy()
            seen = [t.val for t in targets if t.is_relative_detector_id()]
            flips = any(t.is_logical_observable_id() for t in targets)
            new = (p, p * flips, p * len(seen), p * sum(place[i] for i in seen) ** 2)
            sums, count = [a + b for a, b in zip(sums, new, strict=True)], count + 1
    return (circuit.num_detectors, count, *sums)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_error_model_is_that_of_the_published_circuit(sizes: tuple[int, int, int]) -> None:
    circuit = to_stim(cultivation(*sizes), Noise.uniform(1e-3))
    assert moments(circuit) == pytest.approx(PUBLISHED[sizes], rel=1e-11)


def test_detectors_say_by_stage_what_is_post_selected() -> None:
    found: dict[int, int] = {}
    for place in to_stim(cultivation(3, 7, 3), QUIET).get_detector_coordinates().values():
        stage = int(place[3]) if len(place) == 4 else -1
        found[stage] = found.get(stage, 0) + 1
    assert found == {0: 8, 1: 10, 2: 1, 3: 9, 4: 6, -1: 218}


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("sizes", [(3, 0, 0), (5, 0, 0), (3, 7, 1), (3, 9, 1), (5, 9, 1)])
def test_detectors_and_the_logical_y_are_certain_without_noise(
    sizes: tuple[int, int, int], checked: bool
) -> None:
    circuit = to_stim(cultivation(*sizes, checked=checked), QUIET)
    circuit.detector_error_model()  # Raises where a detector or the observable is left to chance.
    events, flips = circuit.compile_detector_sampler(seed=1).sample(200, separate_observables=True)
    assert not events.any()
    assert not flips.any()


@pytest.mark.parametrize(("checked", "faults"), [(True, 3), (False, 1)])
def test_the_fewest_unseen_faults_that_make_a_logical_error(checked: bool, faults: int) -> None:
    circuit = to_stim(cultivation(3, checked=checked), Noise.uniform(1e-3))
    found = circuit.search_for_undetectable_logical_errors(
        dont_explore_detection_event_sets_with_size_above=6,
        dont_explore_edges_with_degree_above=6,
        dont_explore_edges_increasing_symptom_degree=False,
    )
    assert len(found) == faults


def signs(b: Builder, d: int, seed: int) -> list[tuple[int, int]]:
    """(eigenvalue, what the gauge rule wants) of each check, after a run without noise."""
    program = Program(b.layers, b.stages, list(b.sites))
    simulator = stim.TableauSimulator(seed=seed)
    simulator.do(to_stim(program, QUIET))
    found = []
    for check in codes.rp2_checks(d):
        pauli = stim.PauliString(len(program.sites))
        for site in check.support:
            pauli[program.sites.index(site)] = check.kind
        found.append((simulator.peek_observable_expectation(pauli), codes.gauge_sign(check, d)))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("d", [3, 5])
def test_the_fixes_bring_the_z_checks_into_the_gauge_and_each_is_needed(d: int, seed: int) -> None:
    def after(gauge: tuple) -> list[tuple[int, int]]:
        b = Builder()
        old = stages.inject(b, gauge=gauge if d == 3 else GAUGE_3)
        if d == 5:
            stages.morph(b, 3)
            stages.t_check(b, 3, 2)
            growth.to_rp2_5(b, old, True, gauge)
        # The signs of the X checks are what the first round found: only Z checks are brought into a gauge.
        return [pair for pair, c in zip(signs(b, d, seed), codes.rp2_checks(d), strict=True) if c.kind == "Z"]

    gauge = GAUGE_3 if d == 3 else GAUGE_5
    assert all(seen == wanted for seen, wanted in after(gauge))
    assert not all(seen == wanted for seen, wanted in after(gauge[1:]))


@pytest.mark.parametrize(
    ("gauge", "readings"),
    [(GAUGE_3, {0}), (GAUGE_3[1:], {0}), ((), {0}), (GAUGE_3[:2], {0, 1}), (GAUGE_3[::2], {0, 1})],
)
def test_the_proxy_does_not_see_every_wrong_gauge(gauge: tuple, readings: set[int]) -> None:
    """0 is +1. The specification has +1 for any wrong gauge; without one of two fixes that go together it is not."""
    b = Builder()
    stages.inject(b, gauge=gauge)
    before = b.records
    stages.morph(b, 3)
    stages.t_check(b, 3, 2)
    circuit = to_stim(Program(b.layers, b.stages, list(b.sites)), QUIET)
    assert set(circuit.compile_sampler(seed=1).sample(200)[:, before].astype(int).tolist()) == readings


def test_the_logical_y_has_a_y_where_row_and_column_cross() -> None:
    string = logical_y(5)
    assert string[(0, 0)] == "Y"
    assert sorted(string.values()) == ["X"] * 4 + ["Y"] + ["Z"] * 4


def test_noise_stands_where_it_belongs() -> None:
    text = str(to_stim(cultivation(3), Noise(two=0.01, one=0.02, idle=0.03, reset=0.04, measure=0.05)))
    assert "S[T] " in text
    assert "S_DAG[T_DAG] " in text
    kinds = {
        line.split(" ")[0].strip() for line in text.splitlines() if "0.0" in line and "QUBIT" not in line
    }
    assert kinds == {
        "DEPOLARIZE2(0.01)",
        "DEPOLARIZE1(0.02)",
        "DEPOLARIZE1(0.03)",
        "X_ERROR(0.04)",
        "Z_ERROR(0.04)",
        "X_ERROR(0.05)",
        "Z_ERROR(0.05)",
    }


# -- the true T -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_the_check_reads_one_on_t_and_zero_on_its_inverse(seed: int) -> None:
    t = companion_state("T", seed=seed)
    assert t.conjugated_x("T") == pytest.approx(1, abs=1e-12)
    assert t.conjugated_x("T_DAG") == pytest.approx(0, abs=1e-12)


def test_the_mirror_image_of_the_check() -> None:
    inverse = companion_state("T_DAG", seed=0)
    assert inverse.conjugated_x("T_DAG") == pytest.approx(1, abs=1e-12)
    assert inverse.conjugated_x("T") == pytest.approx(0, abs=1e-12)


def test_without_a_fix_of_the_gauge_the_check_says_nothing() -> None:
    table = gauge_table()
    assert table.pop("gauge rule") == pytest.approx(1, abs=1e-12)
    assert len(table) == 4
    assert list(table.values()) == pytest.approx([0, 0, 0, 0], abs=1e-12)


def test_the_circuit_of_the_check_measures_what_the_expectation_says() -> None:
    assert check_chance(seed=1) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_companion_is_stabilized_by_its_strings(seed: int) -> None:
    state, new = companion_state(seed=seed), codes.companion(3)
    assert all(state.expectation(x=support) ** 2 == pytest.approx(1) for support in new["X"])
    assert [state.expectation(z=s) for s in new["Z"]] == pytest.approx(
        [(-1) ** (len(s) // 2) for s in new["Z"]]
    )
