import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


@pytest.mark.skipif(not (REFERENCE / "paired_activations_n16.npz").exists(), reason="needs paired_activations_n16.npz")
def test_published_toy_models_give_the_published_scores():
    from sklearn.model_selection import KFold

    arrays = np.load(REFERENCE / "paired_activations_n16.npz")
    published = json.loads((REFERENCE / "paired_activations_n16.json").read_text())
    ids = np.zeros(8000, int)
    for fold, (_, test) in enumerate(KFold(5, shuffle=True, random_state=42).split(ids)):
        ids[test] = fold
    for comparison in ("neuron->neuron", "sae->sae", "sae->neuron", "rand->sae", "rand->neuron"):
        source, target = comparison.split("->")
        scores = sp.align(arrays[f"{source}_0"], arrays[f"{target}_1"], folds=ids)
        for name, score in scores.items():
            tolerance = 0.005 if name == "ridge" else 1e-4  # the published ridge standardises and chooses alpha otherwise
            np.testing.assert_allclose(score.folds, published[f"{name}:{comparison}"], atol=tolerance)


def test_jit_and_vmap_give_what_the_plain_call_gives(sides, fold_ids):
    x, y = sides
    names = ("semi_match", "ridge")
    plain = sp.align(x, y, names, folds=fold_ids)
    lanes = jax.jit(jax.vmap(lambda x: sp.align(x, y, names, folds=fold_ids)))(np.stack([x[:, ::-1], x]))
    traced_ids = jax.jit(lambda ids: sp.align(x, y, names, folds=ids, n_folds=5))(fold_ids)
    for name, score in plain.items():
        np.testing.assert_allclose(lanes[name].folds[1], score.folds, atol=1e-5)
        np.testing.assert_allclose(traced_ids[name].folds, score.folds, atol=1e-5)


@pytest.mark.slow
def test_streamed_moments_give_what_arrays_give(sides, fold_ids):
    x, y = sides
    names = ("ridge", "debiased_cka", "jaccard")  # all kinds of moments
    moments = sp.moments.init(9, 7, 5, sp.reads(names))
    for start in range(0, 403, 100):
        chunk = slice(start, start + 100)
        moments = sp.moments.update(moments, x[chunk], y[chunk], fold_ids[chunk])
    streamed = jax.jit(sp.score, static_argnums=1)(moments, names)
    for name, score in sp.align(x, y, metrics=names, folds=fold_ids).items():
        np.testing.assert_allclose(streamed[name].folds, score.folds, atol=1e-4, rtol=1e-4, err_msg=name)


def test_traced_input_without_a_live_unit_scores_nan(sides):
    x, y = sides
    scores = jax.jit(lambda x, y: sp.align(x, y, ("semi_match", "permutation_match", "cka")))(jnp.zeros_like(x), y)
    assert all(np.isnan(score.mean) for score in scores.values())


def test_no_folds_fits_and_scores_on_everything(sides):
    x, y = sides
    alive = x[:, np.arange(9) != 3]
    score = sp.align(alive, y[:, :1], metrics="semi_match", folds=None)["semi_match"]
    correlation = np.corrcoef(np.c_[alive, y[:, :1]].T)[:-1, -1]
    np.testing.assert_allclose(score.mean, correlation.max(), atol=1e-5)
    assert score.folds.shape == (1,)


@pytest.mark.parametrize("traced", [False, True])
def test_groups_do_not_straddle_folds(key, traced):
    groups = np.random.default_rng(0).integers(0, 40, 500) * 7
    assign = lambda groups: sp.assign_folds(500, 5, key=key, groups=groups)[0]  # noqa: E731
    ids = np.asarray(jax.jit(assign)(groups) if traced else assign(groups))
    assert all(len(np.unique(ids[groups == group])) == 1 for group in np.unique(groups))
    per_fold = [len(np.unique(groups[ids == fold])) for fold in range(5)]
    assert max(per_fold) - min(per_fold) <= 1


def test_folds_are_balanced_and_follow_the_key(key):
    ids, n_folds = sp.assign_folds(403, 5, key=key)
    assert n_folds == 5
    assert sorted(np.bincount(ids)) == [80, 80, 81, 81, 81]
    assert not np.array_equal(ids, sp.assign_folds(403, 5, key=jax.random.key(1))[0])


X, Y = np.random.default_rng(0).normal(size=(2, 50, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": X[:, 0]}, r"source must be a non-empty \(n_samples, n_units\) array, got shape \(50,\)"),
        ({"target": Y[:40]}, "same samples, got 50 and 40"),
        ({"target": Y.T}, "axes of one of them swapped"),
        ({"source": np.array([["a"]])}, "source must hold real numbers"),
        ({"source": X * 1j}, "source must hold real numbers"),
        ({"source": np.where(X > 1, np.nan, X)}, "source must be finite"),
        ({"target": np.where(Y > 1, np.inf, Y)}, "target must be finite"),
        ({"target": np.full_like(Y, 1e300)}, "target must be finite in float32"),
        ({"source": X * 1e20}, "source must have values below 1e15"),
        ({"target": Y * 1e-19}, "target must have values below 1e15 and units that vary by at least 1e-15"),
        ({"n_folds": 3}, "n_folds must be left out or equal folds=5"),
        ({"source": np.ones_like(X)}, "source has no live unit"),
        ({"source": X[:3], "target": Y[:3]}, "folds must be between 2 and the number of samples, 3, got 5"),
        ({"folds": 1}, "folds must be between 2"),
        ({"folds": np.zeros(50, int)}, "at least 2 and none empty"),
        ({"folds": np.arange(50) % 2 * 2}, "none empty, got counts"),
        ({"folds": np.arange(49)}, "folds must be an int"),
        ({"folds": np.arange(50) / 2}, "folds must be an int"),
        ({"groups": np.arange(50) % 3}, "number of groups, 3, got 5"),
        ({"groups": np.arange(50) % 3, "folds": np.arange(50) % 2}, "folds splits a group"),
        ({"groups": np.arange(49)}, "groups must be integers"),
        ({"metrics": "cosine"}, "metrics takes names out of"),
        ({"source": [[1, 2], [3]]}, "source must be a .* rows of different lengths"),
        ({"key": 0}, "key must be a JAX key"),
        ({"folds": None, "n_folds": 3}, "n_folds must be left out where folds is None, got 3"),
        ({"folds": np.arange(50) % 3, "n_folds": 2}, "folds must be below n_folds=2, got 2"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sp.align(**{"source": X, "target": Y, **arguments})


def test_traced_folds_need_their_number():
    with pytest.raises(ValueError, match="pass n_folds"):
        jax.jit(lambda ids: sp.align(X, Y, folds=ids))(np.arange(50) % 2)


def test_moments_must_hold_what_is_read():
    with pytest.raises(ValueError, match="moments must hold xx for ridge"):
        sp.score(sp.moments.update(sp.moments.init(4, 4, 1, {"xy"}), X, Y, 0), "ridge")
    with pytest.raises(ValueError, match="rsa reads samples, which moments do not hold"):
        sp.score(sp.moments.init(4, 4, 1), "rsa")


def test_half_and_integer_precision_are_taken():
    for dtype in (np.float16, np.int8, bool):
        scores = sp.align((X > 0).astype(dtype), Y.astype(np.float16), metrics="semi_match")
        assert scores["semi_match"].mean.dtype == np.float32


def test_folds_do_not_depend_on_precision(key):
    with jax.enable_x64(True):
        double = sp.assign_folds(50, 5, key=key)[0]
    np.testing.assert_array_equal(double, sp.assign_folds(50, 5, key=key)[0])


def test_samples_that_are_left_out_do_not_matter():
    names = ("debiased_cka", "procrustes", "ridge", "rsa")
    ids = np.where(np.arange(50) < 4, -1, np.arange(50) % 3)
    moved = X.copy()
    moved[:4] *= 1e9
    before, after = (sp.align(x, Y, metrics=names, folds=ids) for x in (X, moved))
    for name in names:
        np.testing.assert_allclose(before[name].folds, after[name].folds, atol=1e-5)
