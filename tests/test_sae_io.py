import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.layout import Format, Layout
from make_saelens import CASES, write

import superpos as sp
from superpos.sae import io

GOLDEN = Path(__file__).parent / "saelens"
REQUIRED = {"vanilla": {"l1": 0.3}, "jumprelu": {"l0": 0.2}, "gated": {"l1": 0.3}, "nonnegative": {"l1": 0.3}}
COUNTERPARTS = {
    "vanilla": "standard",
    "topk": "topk",
    "archetypal": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
}


def build(name, **options):
    kind = sp.sae.ARCHITECTURES[name]
    return kind(6, 12, **REQUIRED.get(name, {kind.ladder[0]: kind.ladder[1][0]}), **options)


def trained(sae, seed=0):
    """Parameters that are nothing special; scales and thresholds are positive."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(sae.init, jax.random.key(0))
    params = {name: jnp.asarray(0.7 * rng.normal(size=leaf.shape), jnp.float32) for name, leaf in shapes.items()}
    return {name: jnp.abs(leaf) if name in ("scale", "threshold") else leaf for name, leaf in params.items()}


def inputs(seed=1):
    return jnp.asarray(2 * np.random.default_rng(seed).normal(size=(40, 6)) + 0.5, jnp.float32)


def assert_same(found, expected):
    """Types, fields and parameters are equal, these to the bit; an array without axes may have become a number."""
    (sae, params), (other, others) = found, expected
    assert type(sae) is type(other)
    for field in dataclasses.fields(other):
        np.testing.assert_array_equal(getattr(sae, field.name), getattr(other, field.name), field.name)
    assert params.keys() == others.keys()
    for name, value in others.items():
        assert params[name].dtype == value.dtype
        assert params[name].shape == value.shape
        assert np.asarray(params[name]).tobytes() == np.asarray(value).tobytes()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_is_saved_is_loaded(tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(sp.sae.ARCHITECTURES)))
    positive = st.floats(0, 10, exclude_min=True)
    options = {
        "rectified": data.draw(st.booleans()),
        "normalize": data.draw(st.sampled_from(["none", "scale", "layer_norm"])),
        "dead": data.draw(st.sampled_from(["none", "resample" if name == "nonnegative" else "signed"])),
        "dead_after": data.draw(st.sampled_from([1, 100, float("inf")])),
        "dead_weight": data.draw(positive | positive.map(jnp.float32)),
        "dead_k": data.draw(st.none() | st.integers(1, 12)),
    }
    if name == "matryoshka":
        options["prefixes"] = data.draw(st.sampled_from([None, (12,), (2, 12)]))
    sae = build(name, **options)
    params = trained(sae, seed=data.draw(st.integers(0, 99)))
    odd = data.draw(st.sampled_from([0.0, -0.0, 1e-42, 3e38]))  # every number is kept, also these
    params["b_dec"] = params["b_dec"].at[0].set(odd)
    path = tmp_path_factory.mktemp("sae") / "it"
    io.save(path, sae, params)
    assert_same(io.load(path), (sae, params))


def test_fields_that_are_arrays_and_params_of_many_seeds_are_kept(tmp_path):
    sae = sp.sae.MatchingPursuit(6, 12, k=jnp.array(3), most=4)
    io.save(tmp_path / "one", sae, sae.init(jax.random.key(0)))
    assert_same(io.load(tmp_path / "one"), (sae, sae.init(jax.random.key(0))))

    starts = jnp.array([0.01, 0.1, 1.0])
    saes = sp.sae.JumpReLU(6, 12, l0=jnp.array([0.1, 0.2, 0.3]), start=starts)
    params = jax.vmap(lambda start: sp.sae.JumpReLU(6, 12, l0=0.1, start=start).init(jax.random.key(0)))(starts)
    io.save(tmp_path / "many", saes, params)
    assert_same(io.load(tmp_path / "many"), (saes, params))
    with pytest.raises(ValueError, match=r"W_dec of params must be \(12, 6\), got \(3, 12, 6\)"):
        io.save(tmp_path / "saelens", saes, params, format="saelens")
    ragged = params | {"b_enc": params["b_enc"][:2]}
    with pytest.raises(ValueError, match=r"b_enc of params must be \(3, 12\), got \(2, 12\)"):
        io.save(tmp_path / "ragged", saes, ragged)


def test_half_precision_is_kept(tmp_path):
    sae = sp.sae.Vanilla(6, 12, l1=0.1)
    params = {name: leaf.astype(jnp.bfloat16) for name, leaf in trained(sae).items()}
    io.save(tmp_path, sae, params)
    assert_same(io.load(tmp_path), (sae, params))


def test_the_order_in_memory_does_not_matter(tmp_path):
    sae = build("topk", normalize="none")
    params = trained(sae)
    columns = Format(Layout(major_to_minor=(1, 0)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    turned = params | {"W_enc": jax.device_put(params["W_enc"], columns)}
    assert np.asarray(turned["W_enc"]).flags["F_CONTIGUOUS"]
    io.save(tmp_path, sae, turned)
    assert_same(io.load(tmp_path), (sae, params))
    io.save(tmp_path, sae, turned, format="saelens")
    np.testing.assert_array_equal(io.load(tmp_path)[1]["W_enc"], params["W_enc"])


@pytest.mark.parametrize("case", sorted(CASES))
def test_reads_what_saelens_wrote(case):
    assert_equals_saelens(GOLDEN / case, np.load(GOLDEN / case / "expected.npz"))


def assert_equals_saelens(path, expected):
    sae, params = io.load(path)
    x, h, y = (jnp.asarray(expected[name]) for name in "xhy")
    assert 0.2 < np.mean(h > 0) < 0.8
    found = sae.encode(params, x)
    np.testing.assert_allclose(found, h, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.decode(params, found, x), y, rtol=1e-5, atol=1e-5)
    assert params.keys() == sae.init(jax.random.key(0)).keys()
    assert all(np.isfinite(leaf).all() for leaf in params.values())


CENTRED = {"normalize": "scale", "centered": True}
PLAIN = {"normalize": "none", "centered": False}
LAYER_NORM = {"normalize": "layer_norm", "centered": False}
WRITTEN = [(name, CENTRED) for name in COUNTERPARTS] + [("gated", LAYER_NORM), ("jumprelu", PLAIN), ("vanilla", LAYER_NORM)]


@pytest.mark.parametrize(("name", "options"), WRITTEN)
def test_what_is_written_for_saelens_encodes_and_reconstructs_the_same(tmp_path, name, options):
    sae = build(name, **options)
    params, x = trained(sae), inputs()
    io.save(tmp_path, sae, params, format="saelens", metadata={"hook_name": "here"})
    written = json.loads((tmp_path / "cfg.json").read_text())
    assert (written["architecture"], written["metadata"]["hook_name"]) == (COUNTERPARTS[name], "here")
    found, found_params = io.load(tmp_path)
    h, found_h = sae.encode(params, x), found.encode(found_params, x)
    assert 0.05 < np.mean(h > 0) < 0.95
    np.testing.assert_allclose(found_h, h, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.decode(found_params, found_h, x), sae.decode(params, h, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [CENTRED, PLAIN, LAYER_NORM, LAYER_NORM | {"centered": True}, PLAIN | {"centered": True}])
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_saelens_reads_what_is_written_for_it(tmp_path, name, options):
    saes, torch = pytest.importorskip("sae_lens.saes.sae"), pytest.importorskip("torch")
    sae = build(name, **options)
    params, x = trained(sae), inputs()
    io.save(tmp_path, sae, params, format="saelens", metadata={"hook_name": "here"})
    theirs = saes.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.metadata.hook_name == "here"
    with torch.no_grad():
        h = theirs.encode(torch.tensor(np.asarray(x)))
        y = theirs.decode(h).numpy()
    np.testing.assert_allclose(sae.encode(params, x), h.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.reconstruct(params, x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", sorted(CASES))
def test_reads_what_this_saelens_writes(tmp_path, case):
    pytest.importorskip("sae_lens.saes.sae")
    for seed in (1, 2):
        assert_equals_saelens(tmp_path / str(seed), write(case, tmp_path / str(seed), seed))


def test_an_unfolded_scale_must_be_known(tmp_path):
    path = shutil.copytree(GOLDEN / "standard_unfolded", tmp_path / "it")
    x = inputs()
    sae, params = io.load(path)
    h, y = sae.encode(params, x), sae.reconstruct(params, x)
    (path / "activation_scaler.json").unlink()
    with pytest.raises(ValueError, match="scaling_factor must be given"):
        io.load(path)
    with pytest.raises(ValueError, match="scaling_factor must be positive"):
        io.load(path, scaling_factor=0.0)
    sae, params = io.load(path, scaling_factor=0.4)
    np.testing.assert_array_equal(sae.encode(params, x), h)
    # Of inputs that are scaled already the weights as they stand are the autoencoder.
    sae, params = io.load(path, scaling_factor=1.0)
    np.testing.assert_allclose(sae.encode(params, 0.4 * x), h, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.reconstruct(params, 0.4 * x), 0.4 * y, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="scaling_factor is for folders of SAELens"):
        io.load(GOLDEN / "standard", scaling_factor=0.4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "skip_transcoder"},
            "architecture of .* must be standard, topk, jumprelu, gated .* 'skip_t",
        ),
        ({"architecture": ["topk"]}, "architecture of"),
        ({"reshape_activations": "hook_z"}, "reshape_activations of .* must be none .* got 'hook_z'"),
        ({"reshape_activations": None, "use_error_term": True}, "reshape_activations"),
        ({"use_error_term": True}, "use_error_term of .* got True"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations of .* got 'covariance_whitening'"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations of .* got 'constant_norm_rescale'"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn of .* must be relu or topk, got 'tanh-relu'"),
        ({"activation_fn_str": "topk"}, "k of .* must be a whole number, got None"),
        ({"d_in": None}, "d_in of .* must be a whole number, got None"),
        ({"d_in": 6.5}, "d_in of .* must be a whole number, got 6.5"),
        ({"d_sae": 13}, r"W_enc of .* must be \(6, 13\), got \(6, 12\)"),
        ({"architecture": "jumprelu"}, "must have W_enc, W_dec, b_dec, b_enc, threshold, but lacks threshold"),
        ({"architecture": "gated"}, "but lacks b_gate, b_mag, r_mag"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, change, message):
    path = shutil.copytree(GOLDEN / "standard", tmp_path / "it")
    config = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        io.load(path)


def test_damage_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cfg\.json is not there"):
        io.load(tmp_path)
    sae = build("topk")
    io.save(tmp_path / "it", sae, trained(sae))
    text = (tmp_path / "it" / "cfg.json").read_text()
    for written, message in [
        (text[:-20], "is not valid JSON"),
        ("[]", "must hold a JSON object, got a list"),
        (text.replace('"topk"', '"topk2"'), "architecture of .* must be one of vanilla, topk, .* got 'topk2'"),
        (text.replace('"tied"', '"tired"'), "fields of .* must be those of TopK: .*'tired'"),
        (text.replace('"k": 3', '"k": 4'), "are not what was saved: they were changed or exchanged since"),
        (text.replace('"version": 1', '"version": 2'), "in layout 1 or before, got 'topk' in 2"),
        (text.replace('"n_latents": 12', '"n_latents": 13'), r"W_dec of .* must be \(13, 6\), got \(12, 6\)"),
    ]:
        (tmp_path / "it" / "cfg.json").write_text(written)
        with pytest.raises(ValueError, match=message):
            io.load(tmp_path / "it")
    (tmp_path / "it" / "cfg.json").write_text(text)
    (tmp_path / "it" / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is not a file of safetensors"):
        io.load(tmp_path / "it")


def test_weights_are_those_that_were_saved_and_finite(tmp_path):
    sae = build("topk")
    io.save(tmp_path / "it", sae, trained(sae, 0))
    io.save(tmp_path / "other", sae, trained(sae, 1))
    weights = tmp_path / "it" / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), (tmp_path / "other" / weights.name).read_bytes()):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match="are not what was saved"):
            io.load(tmp_path / "it")
    params = trained(sae)
    spoilt = params | {"b_enc": params["b_enc"].at[0].set(jnp.nan)}
    with pytest.raises(ValueError, match="b_enc of params must be finite"):
        io.save(tmp_path / "nan", sae, spoilt)
    safetensors.flax.save_file(spoilt, weights)
    with pytest.raises(ValueError, match=r"b_enc of .*sae_weights.safetensors must be finite, got NaN or infinity"):
        io.load(tmp_path / "it")


def test_a_save_that_was_killed_leaves_the_one_before(tmp_path):
    sae = build("topk")
    io.save(tmp_path / "it", sae, trained(sae, 0))
    (tmp_path / "it").rename(tmp_path / ".it.old")  # between the two renames
    assert_same(io.load(tmp_path / "it"), (sae, trained(sae, 0)))
    io.save(tmp_path / "it", sae, trained(sae, 1))
    assert_same(io.load(tmp_path / "it"), (sae, trained(sae, 1)))
    assert [found.name for found in tmp_path.iterdir()] == ["it"]


def test_what_cannot_be_written_is_said_and_nothing_is_written(tmp_path):
    class Mine(sp.sae.TopK):
        """An architecture that another program would not know."""

    sae = build("topk")
    params = trained(sae)
    for arguments, message in [
        ({"format": "torch"}, "format takes superpos, saelens, got 'torch'"),
        ({"metadata": {"when": object()}}, "metadata must be JSON-serialisable"),
        ({"params": {**params, "extra": jnp.zeros(3)}}, "params must have .* but also has extra"),
        ({"params": {"W_dec": params["W_dec"]}}, "params must have .* but lacks W_enc, b_dec, b_enc"),
        ({"sae": Mine(6, 12, 3)}, "sae must be one of sp.sae.ARCHITECTURES .* got a Mine"),
    ]:
        with pytest.raises(ValueError, match=message):
            io.save(**{"path": tmp_path / "it", "sae": sae, "params": params} | arguments)
    for name in ("matching_pursuit", "nonnegative"):
        other = build(name)
        with pytest.raises(ValueError, match=f"format 'saelens' takes vanilla, .* got {name}"):
            io.save(tmp_path / "it", other, trained(other), format="saelens")
    with pytest.raises(ValueError, match="call save outside of jit and vmap"):
        jax.jit(lambda params: io.save(tmp_path / "it", sae, params))(params)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    sae = build("topk")
    path = tmp_path / "new" / "it"
    io.save(path, sae, trained(sae, 0))
    io.save(path, sae, trained(sae, 1))
    assert_same(io.load(path), (sae, trained(sae, 1)))

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)  # the weights are written by then
        for target in (path, tmp_path / "new" / "other"):
            with pytest.raises(OSError, match="No space left"):
                io.save(target, sae, trained(sae, 2))
    rename = Path.rename

    def last(self, target):
        return full() if target == path and (self / "cfg.json").read_text() != old else rename(self, target)

    old = (path / "cfg.json").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", last)
        with pytest.raises(OSError, match="No space left"):
            io.save(path, sae, trained(sae, 2), metadata={"which": 2})
    assert_same(io.load(path), (sae, trained(sae, 1)))
    assert [found.name for found in path.parent.iterdir()] == ["it"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    sae = build("topk")
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="holds something other than a saved autoencoder"):
            io.save(taken, sae, trained(sae))
    assert [found.name for found in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    io.save(tmp_path / "empty", sae, trained(sae))
    assert_same(io.load(tmp_path / "empty"), (sae, trained(sae)))
