"""Every comparison of what views read: against `sp.align` on the same arrays, and against what is known of the sources."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import views
from superpos.activations import Side
from superpos.comparison import Plan, compare, compare_sides, score, score_batches

SAE = views.SAE(expansion=2, k=2, steps=5, batch_size=16)
VIEWS = {
    "neuron": views.Neuron(),
    "sae": SAE,
    "random_sae": views.Untrained(SAE),
    "top": views.Top(SAE),
    "ica": views.ICA(),
}
COMPARISONS = ("neuron->neuron", "sae->neuron", "random_sae->neuron", "top->neuron", "ica->ica")


@pytest.fixture(scope="module")
def arrays():
    """Two sides that mix the same five Laplace sources, `(images, positions, units)`."""
    z = np.random.default_rng(0).laplace(size=(240, 2, 5))
    turn = [np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0] for seed in (1, 2)]
    return (z @ turn[0]).astype(np.float32), (z @ turn[1]).astype(np.float32)


@pytest.fixture(scope="module")
def compared(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    sides = {"a": Side(arrays[0]), "b": Side(arrays[1], reliability=np.array([0.9, 0.5, 0.5, 0.8, 0.05]))}
    plan = Plan(sides, [("a", "b")], VIEWS, COMPARISONS, metrics="semi_match", n_seeds=2, n_blocks=3)
    return plan.run(folder / "run"), folder


def test_neurons_score_as_align_scores_them(compared):
    found, _ = compared
    divided = found.plan.divided
    x, y = (divided.scored[name].reshape(-1, 5) for name in "ab")
    expected = sp.align(x, y, "semi_match", folds=np.repeat(divided.folds, 2))["semi_match"]
    scores = found.cells["a->b", ("a", "b"), "neuron->neuron"]["semi_match"]
    np.testing.assert_allclose(scores["mean"], [expected.mean], atol=1e-6)
    np.testing.assert_allclose(scores["folds"][0], expected.folds, atol=1e-6)
    np.testing.assert_allclose(scores["units"][0], expected.units, atol=1e-6)


def test_latents_score_as_align_scores_what_encode_gives(compared):
    found, _ = compared
    ids = np.repeat(found.plan.divided.folds, 2)
    y = found.encode("b", "neuron")
    for view in ("sae", "random_sae", "top"):
        for seed in range(2):
            expected = sp.align(found.encode("a", view, seed), y, "semi_match", folds=ids)["semi_match"].mean
            mean = found.cells["a->b", ("a", "b"), f"{view}->neuron"]["semi_match"]["mean"][seed]
            assert mean == pytest.approx(float(expected), abs=1e-5)


def test_independent_sources_are_recovered_through_a_rotation(compared):
    found, _ = compared
    rows = {row["comparison"]: row["mean"] for row in found.summary()}
    assert rows["ica->ica"] > 0.95
    assert rows["neuron->neuron"] < 0.9


def test_intervals_are_those_of_the_jackknife(compared):
    found, _ = compared
    divided = found.plan.divided
    x, y = (divided.scored[name].reshape(-1, 5) for name in "ab")
    jackknifed = sp.stats.jackknife(
        x,
        y,
        "semi_match",
        np.repeat(divided.folds, 2),
        groups=np.repeat(divided.groups, 2),
        n_blocks=3,
        key=found.plan.block_key,
    )["semi_match"]
    (row,) = [row for row in found.summary("samples") if row["comparison"] == "neuron->neuron"]
    np.testing.assert_allclose(row["ci95"], sp.stats.over_samples(jackknifed)["ci95"], atol=1e-5)
    (row,) = [row for row in found.summary("units") if row["comparison"] == "neuron->neuron"]
    units = np.asarray(jackknifed.units).mean(axis=0)
    assert row["mean"] == pytest.approx(units.mean(), abs=1e-5)


def test_differences_are_paired(compared):
    found, _ = compared
    rows = {row["comparison"]: row["mean"] for row in found.summary()}
    for over in ("samples", "units"):
        (row,) = found.differences([("sae->neuron", "neuron->neuron")], over)
        assert row["mean"] == pytest.approx(rows["sae->neuron"] - rows["neuron->neuron"], abs=1e-5)
        assert row["ci95"][0] < row["mean"] < row["ci95"][1]
    assert 0 <= found.differences()[0]["p"] <= 1
    with pytest.raises(ValueError, match=r"got 'sae->neurons' \(near it: sae->neuron"):
        found.differences([("sae->neurons", "neuron->neuron")])


def test_scores_are_corrected_for_noise_unit_by_unit(compared):
    found, _ = compared
    (row,) = [row for row in found.over_units(0.1) if row["comparison"] == "neuron->neuron"]
    units = np.asarray(found.cells["a->b", ("a", "b"), "neuron->neuron"]["semi_match"]["units"]).mean(axis=(0, 1))
    reliability = np.array([0.9, 0.5, 0.5, 0.8])
    assert row["corrected"] == pytest.approx((units[:4] / np.sqrt(reliability)).mean(), abs=1e-5)
    assert (row["n_units"], row["n_excluded"]) == (5, 1)
    assert np.mean(row["ci95_samples_units"]) == pytest.approx(row["mean"], abs=1e-5)
    assert np.ptp(row["ci95_samples_units"]) > np.ptp(row["ci95"])  # of both together
    others = [row for row in found.over_units(0.1) if row["comparison"] == "ica->ica"]
    assert all(row["corrected"] is None for row in others)  # the reliability of neurons is not that of components


def test_the_table_and_the_figure_hold_everything(compared, tmp_path):
    found, _ = compared
    assert set(found.scores.score.dims) == {"pair", "comparison", "metric", "seed", "fold"}
    of_neurons = found.scores.score.sel(comparison="neuron->neuron", seed=1)
    assert of_neurons.isnull().all()  # neurons have no second seed
    found.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert "ica->ica" in repr(found)
    views_told = {(row["side"], row["view"]) for row in found.describe()}
    assert {("a", "sae"), ("a", "random_sae"), ("a", "ica"), ("b", "ica")} <= views_told
    assert ("b", "sae") not in views_told  # of the target no latents are read


def test_a_killed_run_goes_on_to_the_same_scores(compared):
    found, folder = compared
    shutil.copytree(folder / "run", folder / "again")
    shutil.rmtree(folder / "again" / "scores" / "1")
    shutil.rmtree(folder / "again" / "ica_1")
    again = found.plan.run(folder / "again")
    jax.tree.map(np.testing.assert_array_equal, found.cells, again.cells)


def test_a_family_is_fitted_once(compared):
    """Untrained latents, and the best of the latents, are of the SAE that was trained for `sae`."""
    found, folder = compared
    names = sorted(path.name.rsplit("_", 1)[0] for path in (folder / "run").iterdir() if path.name != "scores")
    assert names == ["fixed", "fixed", "ica", "ica", "sae"]
    family = found.fits[0]["sae"]
    assert set(family.fits) == {"sae", "random_sae", "top"}
    assert set(family.fits["top"]) == {"chosen"}


def test_an_ica_that_has_not_converged_is_told(arrays):
    hasty = {"ica": views.ICA(max_iter=1)}
    with pytest.warns(RuntimeWarning, match="ica of source: .*converge"):
        found = compare(arrays[0][:, 0], arrays[1][:, 0], hasty, ("ica->ica",), metrics="semi_match", n_blocks=None)
    assert len(found.doubts) == 2


def test_many_sides_are_one_sample(arrays):
    """Seeds of a network: every pair, summarised over sides; positions pooled after they are encoded."""
    x, y = arrays
    sides = {"one": Side(x), "two": Side(y), "three": Side(x[..., ::-1] + y)}
    pairs = [(a, b) for a in sides for b in sides if a != b]
    found = compare_sides(
        sides,
        {"layer": pairs},
        {"neuron": views.Neuron()},
        ("neuron->neuron",),
        metrics="semi_match",
        n_blocks=None,
        pool="mean",
    )
    assert len(found.plan.stacks) == 1
    divided = found.plan.divided
    square = np.full((3, 3), np.nan)
    for a, b in pairs:
        means = [divided.scored[name].mean(axis=1) for name in (a, b)]
        square[list(sides).index(a), list(sides).index(b)] = sp.align(*means, "semi_match", folds=divided.folds)[
            "semi_match"
        ].mean
    (row,) = found.summary()
    expected = sp.stats.over_pairs(square)
    assert row["over"] == "sides"
    assert (row["n_seeds"], row["n_pairs"]) == (3, 6)
    np.testing.assert_allclose([row["mean"], *row["ci95"]], [expected["mean"], *expected["ci95"]], atol=1e-5)
    with pytest.raises(ValueError, match="over must be sides"):
        found.summary("seeds")


def test_some_pairs_of_sides_are_a_sample_too(arrays):
    x, y = arrays
    sides = {"a": Side(x), "b": Side(y), "c": Side(x[..., ::-1] + y)}
    pairs = [("a", "b"), ("a", "c")]
    found = compare_sides(
        sides, {"layer": pairs}, {"neuron": views.Neuron()}, "neuron->neuron", metrics="semi_match", n_blocks=None
    )
    means = [found.cells["layer", pair, "neuron->neuron"]["semi_match"]["mean"][0] for pair in pairs]
    (row,) = found.summary()
    assert row["mean"] == pytest.approx(np.mean(means), abs=1e-6)
    assert row["n_pairs"] == 2
    for wrong in ([("a", "a")], [("a", "b"), ("a", "b")]):
        with pytest.raises(ValueError, match="pairs must be of two different sides, and each there once"):
            Plan(sides, {"layer": wrong}, VIEWS, COMPARISONS)


def test_units_are_paired_only_where_they_are_the_same(compared):
    found, _ = compared
    rows = {row["difference"]: row for row in found.differences()}
    assert rows["sae->neuron - neuron->neuron"]["ci95_units"] is not None
    assert rows["ica->ica - neuron->neuron"]["ci95_units"] is None
    assert "ci95_seeds" in rows["sae->neuron - neuron->neuron"]
    over_units = {row["comparison"]: row for row in found.summary("units")}
    assert over_units["ica->ica"]["ci95"] is None  # two seeds have two sets of components
    assert over_units["sae->neuron"]["ci95"] is not None


def test_views_that_nobody_named_are_fitted_below_those_of_them(arrays):
    x, y = (array[:, 0] for array in arrays)
    found = compare(x, y, {"top": views.Top(views.PCA(), m=3)}, ("top->top",), metrics="semi_match", n_blocks=None)
    assert found.encode("source", "top").shape[1] == 3
    aligned = views.Top(views.Neuron(), m=2, by="alignment")
    chosen = compare(
        x, y[:, :2], {"neuron": views.Neuron(), "top": aligned}, ("top->neuron",), metrics="semi_match", n_blocks=None
    )
    r = np.corrcoef(chosen.plan.divided.training["source"].T, chosen.plan.divided.training["target"].T)[:5, 5:]
    best = np.argsort(-np.abs(r).max(axis=1))[:2]
    np.testing.assert_array_equal(chosen.encode("source", "top"), chosen.plan.divided.scored["source"][:, 0][:, best])


def test_weights_give_common_units_more_say(arrays):
    x, y = (array.reshape(-1, 5) for array in arrays)
    y = y * np.array([10, 1, 1, 1, 1], np.float32)
    uniform, weighted = (
        score(x, y, "semi_match", None, n_blocks=None, weights=name)["semi_match"] for name in ("uniform", "variance")
    )
    units, variance = np.asarray(uniform["units"][0]), y.var(axis=0)
    assert float(uniform["mean"]) == pytest.approx(units.mean(), abs=1e-6)
    assert float(weighted["mean"]) == pytest.approx(np.average(units, weights=variance), abs=1e-5)


def test_batches_score_as_arrays_do(arrays):
    x, y = (jnp.asarray(array.reshape(6, 80, 5)) for array in arrays)
    encode = lambda i: ({"neuron": x[i], "half": x[i][:, :3]}, {"neuron": y[i]})  # noqa: E731
    found, gap = jax.jit(
        lambda: score_batches(encode, 6, ("neuron->neuron", "half->neuron"), ("semi_match", "soft_match"), 3)
    )()
    ids = np.repeat(np.arange(6) % 3, 80)
    for i, width in enumerate((5, 3)):
        expected = sp.align(x.reshape(-1, 5)[:, :width], y.reshape(-1, 5), ("semi_match", "soft_match"), folds=ids)
        for metric, values in found.items():
            assert float(values[i]) == pytest.approx(float(expected[metric].mean), abs=1e-5)
    assert abs(float(gap)) < 1e-4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Doubled(views.View):
    """A control that somebody has just written: one class."""

    def apply(self, weights, x):
        """Twice the units."""
        return 2 * x


def test_a_new_view_is_one_class(arrays):
    x, y = (array[:, 0] for array in arrays)
    found = compare(
        x, y, {"neuron": views.Neuron(), "doubled": Doubled()}, ("neuron->neuron", "doubled->neuron"), metrics="semi_match"
    )
    a, b = (row["mean"] for row in found.summary())
    assert a == pytest.approx(b, abs=1e-6)


def test_what_is_missing_is_told(arrays):
    sides = {"a": Side(arrays[0], views={"only": Doubled()}), "b": Side(arrays[1])}
    plan = Plan(
        sides, [("a", "b")], {"neuron": views.Neuron()}, ("neuron->neuron", "only->only", "only->neuron"), metrics="semi_match"
    )
    assert plan.missing == [{"pair": "a->b", "comparison": "only->only", "reason": "b has no view only"}]


REFUSED = [
    ({"comparisons": ("saes->neuron",)}, r"comparisons must be of the views .*, got 'saes' in 'saes->neuron' \(near it: sae"),
    ({"comparisons": ("sae",)}, "A comparison must be two views with an arrow between them"),
    ({"comparisons": ()}, "comparisons must name at least one"),
    ({"comparisons": ("sae->sae", "sae->sae")}, "comparisons must each be there once"),
    ({"metrics": "rige"}, "rige"),
    ({"weights": "varance"}, r"weights must be uniform, variance, density, got 'varance' \(near it: variance\)"),
    ({"n_seeds": None}, "n_seeds must be a whole number of at least 1, got None"),
    ({"views": {"neuron": "neuron"}, "comparisons": "neuron->neuron"}, "views must map names to views"),
    ({"comparisons": {"other": ("neuron->neuron",)}}, "comparisons must have the labels of pairs"),
    ({"views": {"sae": views.SAE(expansion=-1)}, "comparisons": "sae->sae"}, "expansion of an SAE must be above 0"),
    ({"n_seeds": 0}, "n_seeds must be a whole number of at least 1, got 0"),
    ({"n_blocks": 1}, "n_blocks must be a whole number of at least 2, got 1"),
    ({"n_blocks": 50}, "n_blocks must be at most"),
    ({"folds": 200}, "folds must be between 2 and the number of"),
    ({"views": {"top": views.Top(SAE, m=11)}, "comparisons": ("top->top",)}, "m of Top must be"),
    ({"views": {"sae": views.SAE(k=90)}, "comparisons": ("sae->sae",)}, "sae of source: k must be a whole number"),
    ({"views": {"ica": views.ICA()}, "comparisons": ("ica->ica",), "split": 0.01}, "ica of source: .*"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_is_refused_is_named_before_anything_trains(arrays, settings, message):
    settings = {"views": VIEWS, "comparisons": COMPARISONS, **settings}
    with pytest.raises(ValueError, match=message):
        Plan({"source": Side(arrays[0]), "target": Side(arrays[1])}, [("source", "target")], **settings)


def test_training_samples_belong_to_one_place(arrays):
    with pytest.raises(ValueError, match="train of source must be given to its Side"):
        compare(Side(arrays[0]), arrays[1], VIEWS, COMPARISONS, train=(arrays[0] + 1, None))
    with pytest.raises(ValueError, match="train must be a pair"):
        compare(*arrays, VIEWS, COMPARISONS, train=arrays[0])
    with pytest.raises(ValueError, match=r"reliability of b must be \(5,\), one a unit"):
        Plan({"a": Side(arrays[0]), "b": Side(arrays[1], reliability=np.ones(3))}, [("a", "b")], VIEWS, COMPARISONS)


def test_sides_that_nobody_knows_are_refused(arrays):
    with pytest.raises(ValueError, match=r"pairs must be of the sides a, got 'c'"):
        Plan({"a": Side(arrays[0])}, [("a", "c")])
    with pytest.raises(ValueError, match="b has no live unit"):
        Plan({"a": Side(arrays[0]), "b": Side(np.ones_like(arrays[1]))}, [("a", "b")], VIEWS, ("neuron->neuron",))
