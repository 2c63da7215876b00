import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp


def expected(x, y, part):
    """Float64 moments of some samples."""
    x, y = np.asarray(x, np.float64)[part], np.asarray(y, np.float64)[part]
    dx, dy = x - x.mean(0), y - y.mean(0)
    return {"count": len(x), "mean": x.mean(0), "xx": dx.T @ dx, "xy": dx.T @ dy, "yy": dy.T @ dy, "low": x.min(0)}


def check(moments, fold, x, y, part, rtol=1e-5):
    wanted = expected(x, y, part)
    scale = np.sqrt(np.outer(np.diag(wanted["xx"]), np.diag(wanted["yy"]))).max()
    assert moments.count[fold] == wanted["count"]
    np.testing.assert_allclose(moments.x.mean[fold], wanted["mean"], rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(moments.xy[fold], wanted["xy"], atol=rtol * scale)
    np.testing.assert_allclose(moments.x.scatter[fold], wanted["xx"], atol=rtol * np.abs(wanted["xx"]).max())
    np.testing.assert_allclose(moments.y.scatter[fold], wanted["yy"], atol=rtol * np.abs(wanted["yy"]).max())
    np.testing.assert_allclose(moments.x.squares[fold], np.diag(wanted["xx"]), rtol=rtol, atol=1e-5)
    np.testing.assert_array_equal(moments.x.low[fold], wanted["low"].astype(np.float32))


@pytest.fixture(scope="module")
def whole(sides, fold_ids):
    return jax.jit(sp.moments.update)(sp.moments.init(9, 7, 5), *sides, fold_ids)


def test_each_fold_is_the_float64_answer(whole, sides, fold_ids):
    for fold in range(5):
        check(whole, fold, *sides, fold_ids == fold)


def test_training_part_is_everything_else(whole, sides, fold_ids):
    for fold in range(5):
        check(sp.moments.training(whole), fold, *sides, fold_ids != fold)


def test_streamed_and_merged_equals_at_once(whole, sides, fold_ids):
    x, y = sides
    parts = [sp.moments.init(9, 7, 5), sp.moments.init(9, 7, 5)]
    for start in range(0, 403, 50):
        chunk = slice(start, start + 50)
        i = start // 200 % 2
        parts[i] = sp.moments.update(parts[i], x[chunk], y[chunk], fold_ids[chunk])
    merged = sp.moments.merge(*parts)
    for got, wanted in zip(jax.tree.leaves(merged), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-2)


def test_scalar_fold_equals_ids(sides):
    x, y = sides
    one = sp.moments.update(sp.moments.init(9, 7, 2), x, y, 1)
    ids = sp.moments.update(sp.moments.init(9, 7, 2), x, y, np.ones(403, int))
    for got, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(ids), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-2)


def test_samples_outside_all_folds_are_left_out(sides, fold_ids):
    x, y = sides
    some = np.where(np.arange(403) < 300, fold_ids, -1)
    got = sp.moments.update(sp.moments.init(9, 7, 5), x, y, some)
    for fold in range(5):
        check(got, fold, x, y, some == fold)


@pytest.mark.parametrize("fold", [-1, 2])
def test_a_scalar_fold_out_of_range_adds_nothing(sides, fold):
    got = sp.moments.update(sp.moments.init(9, 7, 2), *sides, fold)
    assert (got.count == 0).all()
    assert (got.xy == 0).all()


def test_no_samples_add_nothing(sides):
    x, y = sides
    empty = sp.moments.init(9, 7, 2)
    assert (sp.moments.update(empty, x[:0], y[:0], np.zeros(0, int)).count == 0).all()


def test_constant_units_are_masked_everywhere(sides):
    x, y = sides
    runs = np.arange(403) // 81  # y's last unit is constant in the first folds only
    source, target = sp.moments.update(sp.moments.init(9, 7, 5), x, y, runs).live()
    np.testing.assert_array_equal(source, np.arange(9) != 3)
    np.testing.assert_array_equal(target, (np.arange(7) != 1) & (np.arange(7) != 6))


@pytest.mark.slow
def test_two_million_samples_far_from_zero_keep_their_digits():
    """A naive float32 sum of squares would lose everything: the mean is 300 standard deviations."""

    @jax.jit
    def stream(moments, key):
        def add(moments, key):
            z = jax.random.normal(key, (8192, 3)) @ jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.9], [0.0, 0.0, 0.3]])
            return sp.moments.update(moments, 300 + z[:, :2], 300 + z[:, 2:], jnp.arange(8192) % 2), z.astype(jnp.float32)

        return jax.lax.scan(add, moments, jax.random.split(key, 250))

    got, z = stream(sp.moments.init(2, 1, 2), jax.random.key(0))
    z = (np.float32(300) + np.asarray(z).reshape(-1, 3)).astype(np.float64)
    everything = sp.moments.pool(got, jnp.ones((1, 2), bool))
    r = np.asarray(sp.metrics.base.correlations(everything))[0, :, 0]
    np.testing.assert_allclose(r, np.corrcoef(z.T)[:2, 2], atol=1e-4)
    np.testing.assert_allclose(everything.x.squares[0] / len(z), z[:, :2].var(axis=0), rtol=1e-4)


def test_selecting_units_is_having_had_only_those(whole, sides, fold_ids):
    x, y = sides
    source, target = np.array([4, 0, 8]), np.array([2, 2])
    got = sp.moments.select(whole, source, target)
    for fold in range(5):
        check(got, fold, x[:, source], y[:, target], fold_ids == fold)


def test_an_index_out_of_range_is_a_dead_unit(whole):
    source, _ = sp.moments.select(whole, np.array([0, 9, 3]), np.array([0])).live()
    np.testing.assert_array_equal(source, [True, False, False])


def test_only_what_is_read_is_kept():
    moments = sp.moments.init(4, 5, 2, reads={"xx"})
    assert moments.x.scatter.shape == (2, 4, 4)
    assert moments.y.scatter is None
    with pytest.raises(ValueError, match="reads takes names out of xx, xy, yy, norms, active, got zz"):
        sp.moments.init(4, 5, 2, reads={"zz"})


def test_shapes_that_do_not_fit(sides):
    x, y = sides
    with pytest.raises(ValueError, match="must have shapes"):
        sp.moments.update(sp.moments.init(9, 7, 2), x, y[:100], 0)


def test_moments_vmap_and_jit(sides, fold_ids):
    x, y = sides
    stacked = jax.jit(jax.vmap(lambda x: sp.moments.update(sp.moments.init(9, 7, 5), x, y, fold_ids)))(
        np.stack([x, x[:, ::-1]])
    )
    alone = sp.moments.update(sp.moments.init(9, 7, 5), x[:, ::-1], y, fold_ids)
    np.testing.assert_allclose(stacked.xy[1], alone.xy, rtol=1e-4, atol=1e-2)
    assert dataclasses.is_dataclass(stacked)


def test_lengths_and_supports_are_the_float64_answer_however_they_are_fed(sides, fold_ids):
    """Batches, a merge and a pool of folds, each of which moves the centre that lengths are measured from."""
    x, y = (np.asarray(side, np.float64) + 3 for side in sides)
    update = jax.jit(sp.moments.update)
    parts = [sp.moments.init(9, 7, 5, ("norms", "active")) for _ in range(2)]
    for start in range(0, 403, 50):
        chunk = slice(start, start + 50)
        i = start // 200 % 2
        parts[i] = update(parts[i], x[chunk], y[chunk], fold_ids[chunk])
    merged = jax.jit(sp.moments.merge)(*parts)
    training = jax.jit(sp.moments.training)(merged)
    for fold in range(5):
        for moments, rows in ((merged, fold_ids == fold), (training, fold_ids != fold)):
            a, b = (side[rows] - side[rows].mean(axis=0) for side in (x, y))
            a2, b2 = np.sum(a**2, axis=1), np.sum(b**2, axis=1)
            for pair, left, right in (("xx", (a, a2), (a, a2)), ("xy", (a, a2), (b, b2)), ("yy", (b, b2), (b, b2))):
                got = moments.norms[pair]
                np.testing.assert_allclose(got.product[fold], np.sum(left[1] * right[1]), rtol=1e-4)
                scale = np.sqrt(np.sum(left[1] * right[1] ** 2))
                np.testing.assert_allclose(got.a[fold], left[0].T @ right[1], atol=1e-4 * scale)
                np.testing.assert_allclose(
                    got.b[fold], right[0].T @ left[1], atol=1e-4 * np.sqrt(np.sum(right[1] * left[1] ** 2))
                )
            active = moments.active
            both = active.xy[fold] + rows.sum() * np.outer(active.x.mean[fold], active.y.mean[fold])
            np.testing.assert_allclose(both, (x[rows] > 0).T.astype(float) @ (y[rows] > 0), atol=1e-3)


def test_only_like_moments_merge():
    for other in (sp.moments.init(9, 7, 4), sp.moments.init(9, 6, 5), sp.moments.init(9, 7, 5, ("xy",))):
        with pytest.raises(ValueError, match="same numbers of folds and units, and the same reads"):
            sp.moments.merge(sp.moments.init(9, 7, 5), other)
