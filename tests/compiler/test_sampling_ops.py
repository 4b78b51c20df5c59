"""The choice of a token: as it is defined, in numpy, and in standard operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, TypeMismatch, make
from moec.compiler.onnx_graph import to_onnx
from moec.compiler.ops.sampling import CHOOSE_TOKEN, WISHES
from moec.compiler.ops.sources import INPUT
from moec.compiler.text import read, show

INF = math.inf
LOGITS = st.sampled_from([-INF, -20.0, -1.5, -0.0, 0.0, 0.25, 1.0, 1.0, 3.0, 17.0])


def graph(vocabulary: int) -> Graph:
    logits = INPUT(name="logits", dtype="f32", shape=(B, 1, vocabulary))
    wishes = [INPUT(name=name, dtype=dtype, shape=(B,)) for name, dtype in WISHES.items()]
    chosen = make(CHOOSE_TOKEN, logits, *wishes).values
    return Graph((logits, *wishes), chosen, ("token", "log_probability"))


def feeds(rows: Any, temperature: Any, top_k: Any, top_p: Any, uniform: Any) -> dict[str, Any]:
    wishes = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "uniform": uniform}
    types = {"f32": np.float32, "i64": np.int64}
    asked = {name: np.array(wishes[name], types[dtype]) for name, dtype in WISHES.items()}
    return {"logits": np.array(rows, np.float32)[:, None], **asked}


def chosen(row: list[float], temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """The definition word by word, for one text."""
    if not temperature > 0:
        return row.index(max(row))
    weights = [1.0 if z == max(row) else math.exp((z - max(row)) / temperature) for z in row]
    few = [i for i, z in enumerate(row) if not 0 < top_k < sum(other > z for other in row) + 1]
    every = math.fsum(weights[i] for i in few)
    kept = [
        i
        for i in few
        if row[i] == max(row) or math.fsum(weights[j] for j in few if row[j] > row[i]) < top_p * every
    ]
    total, so_far = math.fsum(weights[i] for i in kept), 0.0
    for i in kept:
        so_far += weights[i]
        if so_far > uniform * total:
            return i
    return kept[-1]


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(LOGITS, min_size=1, max_size=9),
    temperature=st.sampled_from([0.0, -1.0, 1e-30, 0.5, 1.0, 4.0]),
    top_k=st.integers(-1, 11),
    top_p=st.sampled_from([-0.5, 0.0, 1e-9, 0.3, 0.77, 1.0, 2.0]),
    uniform=st.sampled_from([0.0, 0.1234, 0.5001, 0.8765, 1 - 2**-24]),
)
def test_the_reference_is_the_definition(
    row: list[float], temperature: float, top_k: int, top_p: float, uniform: float
) -> None:
    fed = feeds([row], [temperature], [top_k], [top_p], [uniform])
    token, likely = interpret(graph(len(row)), fed, {}).values()
    exact = [float(np.float32(wish)) for wish in (temperature, top_p, uniform)]
    assert token[0] == chosen(row, exact[0], top_k, *exact[1:])
    if max(row) > -INF:
        whole = math.fsum(math.exp(z - max(row)) for z in row)
        assert likely[0] == pytest.approx(row[token[0]] - max(row) - math.log(whole), abs=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 2, 11, 3000])
def test_standard_operators_agree(vocabulary: int) -> None:
    model = graph(vocabulary)
    session = onnxruntime.InferenceSession(to_onnx(model, {}, lambda node: None).SerializeToString())
    source, batch = np.random.default_rng(vocabulary), 40
    rows = source.standard_normal((batch, vocabulary)) * 3
    rows[::3] = np.round(rows[::3])  # ties
    rows[1::4] = np.where(source.random(vocabulary) < 0.8, -INF, rows[1::4])
    fed = feeds(
        rows,
        source.choice([0, -1, 0.5, 1, 2], batch),
        source.integers(-1, vocabulary + 2, batch),
        source.choice([0, 1e-7, 0.5, 0.9, 1, 1.5], batch),
        source.random(batch, np.float32),
    )
    token, likely = interpret(model, fed, {}).values()
    assert len(set(token.tolist())) > min(vocabulary, 4) / 2
    got = session.run(None, fed)
    np.testing.assert_array_equal(got[0], token)
    np.testing.assert_allclose(got[1], likely, rtol=1e-6, atol=1e-7)


def test_draws_have_the_chances_of_what_stays() -> None:
    row, count = np.log([0.1, 0.4, 0.2, 0.05, 0.25]), 20000
    fed = feeds([row] * count, [1.0] * count, [3] * count, [1.0] * count, np.arange(count) / count)
    token, _ = interpret(graph(5), fed, {}).values()
    shares = np.bincount(token, minlength=5) / count
    np.testing.assert_allclose(shares, np.array([0, 0.4, 0.2, 0, 0.25]) / 0.85, atol=2e-4)


def test_text_says_it_all() -> None:
    model = graph(11)
    assert read(show(model)) == model


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, *wishes = graph(11).inputs
    many = INPUT(name="many", dtype="f32", shape=(2 * B, 11))
    whole = INPUT(name="whole", dtype="i64", shape=(B, 1, 11))
    for wrong, why in ((many, "temperature is"), (whole, "logits is i64")):
        with pytest.raises(TypeMismatch, match=why):
            make(CHOOSE_TOKEN, wrong, *wishes)
    with pytest.raises(TypeMismatch, match="top_k is f32"):
        make(CHOOSE_TOKEN, logits, wishes[0], wishes[0], *wishes[2:])
