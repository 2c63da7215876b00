"""How scores show themselves: in a terminal, in a notebook, as a data frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos.metrics import Score, Scores


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.stack([x[:, 0], np.ones(60), x[:, 1] + x[:, 2]], axis=1).astype(np.float32)  # the second is dead
    return sp.align(x, y, ("soft_match", "cka"), folds=3)


def test_print_shows_a_line_a_metric(scores):
    head, *lines = repr(scores).splitlines()
    assert head.split() == ["metric", "score", "folds", "units"]
    assert [line.split()[0] for line in lines] == ["soft_match", "cka"]
    assert lines[0].split()[1] == f"{float(scores['soft_match'].mean):.3f}"
    assert lines[0].split()[-1] == "2"
    assert scores._repr_html_().count("<tr>") == 3


def test_a_data_frame_holds_every_fold_and_live_unit(scores):
    frame = scores["soft_match"].to_dataframe()
    assert sorted(set(frame["unit"])) == [0, 2]
    assert frame.groupby("fold")["score"].mean().to_numpy() == pytest.approx(np.asarray(scores["soft_match"].folds))
    assert list(scores["cka"].to_dataframe().columns) == ["fold", "score"]
    summary = scores.to_dataframe().set_index("metric")
    assert summary.loc["soft_match", "n_units"] == 2
    assert summary.loc["cka", "mean"] == pytest.approx(float(scores["cka"].mean))


def test_scores_are_a_pytree_in_the_order_asked(scores):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, scores)
    assert isinstance(doubled, Scores)
    assert list(doubled) == ["soft_match", "cka"]
    assert doubled["cka"].mean == 2 * scores["cka"].mean
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(scores)]
    assert "['cka'].mean" in paths


def test_traced_and_batched_scores_show_what_they_are():
    score = Score(jnp.zeros(4), jnp.zeros((4, 2)), None, {})
    assert repr(score) == "Score array (4,)"
    shown = []
    jax.eval_shape(lambda mean: shown.append(repr(Score(mean, mean[None], None, {}))) or mean, jnp.zeros(()))
    assert "JitTracer" in shown[0] or "Traced" in shown[0]


def test_a_report_is_a_number_a_line():
    numbers = dict.fromkeys(("fvu", "l0", "dead", "shrinkage", "effective"), jnp.asarray(0.25))
    report = sp.evaluation.Report(**numbers, density=jnp.asarray([0.0, 0.5]), recovery={})
    assert [line.split()[0] for line in repr(report).splitlines()] == [*numbers, "density"]
    assert repr(report).endswith("0.000 to 0.500 of 2 latents")
    several = report._replace(fvu=jnp.zeros(3))
    assert repr(several) == "Report of (3,)"


def test_a_slip_and_a_path_are_told_what_to_take_instead():
    x = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"no metric is called 'ridg' \(near it: ridge\): metrics takes names out of"):
        sp.align(x, x, "ridg")
    with pytest.raises(
        ValueError, match=r"source must be an array, got the path 'a.npy': load it; sp.align_stream reads files"
    ):
        sp.align("a.npy", x)
