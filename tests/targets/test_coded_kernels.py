"""Caches of latents as int8 codes: what is written, and attention over it, against the references."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moec.compiler.ops.coded import ENCODE_ROWS
from moec.targets.base import Kernel
from moec.targets.cpu import isa
from moec.targets.cpu.device import Bench

Build = Callable[..., Bench]
COLUMNS = 81  # of a latent: two whole groups and a part of one
# batch, new tokens, cached tokens, left padding of the second sequence; 60 tokens are cheaper materialised
SHAPES = ((1, 1, 0, 0), (2, 1, 6, 4), (1, 7, 129, 0), (2, 60, 40, 20), (2, 2, 700, 701))


def attention(dtype: str) -> Kernel:
    sizes = {"heads": 12, "nope": 12, "rope": 8, "latent": COLUMNS, "value": 10, "pairs_in": 0}
    dims = {**sizes, "pairs_out": 1, "width": 12 * (12 + 8), "start": 0}
    return Kernel("latent_attention", tuple(dims.items()), (("scale", 0.3),), dtype)


def write(dtype: str) -> Kernel:
    sizes = {"c": COLUMNS, "r": 24, "width": COLUMNS + 30, "start": 5, "pairs_in": 0, "pairs_out": 1}
    return Kernel("latent_write", tuple(sizes.items()), (("eps", 1e-5),), dtype)


def test_attention(level: isa.Isa, build: Build) -> None:
    """Rows that no token has reached have NaN for scales."""
    bench = build(attention("f32+int8" if level.lanes == 8 else "bf16+int8"), level)
    for batch, tokens, cached, padding in SHAPES:
        feeds = bench.case.feeds(
            bench.kernel, tokens, np.random.default_rng(tokens), batch=batch, cached=cached, padding=padding
        )
        assert np.isnan(feeds[-1][:, :, cached + tokens :]).all()
        assert ((tokens, cached), bench.check_feeds(feeds)) == ((tokens, cached), None)


def test_codes_are_those_of_what_a_wide_cache_holds(level: isa.Isa, build: Build) -> None:
    """Also of rows of zeros and of tiny numbers, of a group with one large one, and with a NaN."""
    wide, coded = build(write("f32"), level), build(write("f32+int8"), level)
    for batch, tokens, cached in ((1, 0, 3), (1, 1, 0), (2, 9, 4)):
        feeds = coded.case.feeds(coded.kernel, tokens, np.random.default_rng(1), batch=batch, cached=cached)
        kv, *angles = feeds[:3]
        kv[:, 1:2], kv[:, 2:3], kv[:, 3:4, 9], kv[:, 4:5, 40] = 0, kv[:, 2:3] * 1e-30, 1e3, np.nan
        codes, keys, scales = feeds[3], feeds[4], feeds[6]
        codes[...], keys[...], scales[...] = 5, 0.5, 0.25
        plain = [np.full(each.shape, 0.5, np.float32) for each in (codes, keys)]
        latents, turned = wide.run([kv, *angles, *plain, feeds[5]], plain)
        new = slice(cached, cached + tokens)
        codes, scales = codes.copy(), scales.copy()
        codes[:, :, new], scales[:, :, new] = ENCODE_ROWS.reference(latents[:, :, new], format="int8")
        got = coded.run(feeds, [codes, keys, scales])
        known = np.isfinite(scales)[..., np.arange(COLUMNS) // 32]
        np.testing.assert_array_equal(got[0][known], codes[known])
        np.testing.assert_array_equal(got[1].astype(np.float32), turned.astype(keys.dtype).astype(np.float32))
        np.testing.assert_array_equal(got[2], scales)
        if tokens > 4:  # what is no number spoils all of its row
            assert np.isnan(scales[:, :, cached + 4]).all()
            assert np.isfinite(scales[:, :, cached + 3]).all()


def test_scales_of_another_number_are_refused(build: Build) -> None:
    bench = build(attention("f32+int8"), isa.V3)
    feeds = bench.feeds(1)
    wanted = bench.sample.wanted(feeds)
    feeds[-1] = feeds[-1][..., :1]
    with pytest.raises(Exception, match=r"input 9 holds \d+ elements; \d+ were expected"):
        bench.run(feeds, wanted)
