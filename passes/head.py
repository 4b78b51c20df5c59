"""A language model that says how its texts go on, rather than what it thinks of every token.

B batch, T new tokens, V vocabulary.
"""

from __future__ import annotations

from ..compiler.ir import B, Graph, Value, make, plain
from ..compiler.ops.sampling import CHOOSE_TOKEN, WISHES
from ..compiler.ops.shape import SLICE
from ..compiler.ops.sources import INPUT

LOGITS, NEXT = "logits", "next"
HEADS = (LOGITS, NEXT)
RESULTS = ("token", "log_probability")  # what the head `next` gives before anything else


def choosing(graph: Graph) -> Graph:
    """The graph of the last token alone, with a token chosen from its logits: the head `next`.

    before   logits_BTV, caches
    after    token_B, log_probability_B = choose_token(last_B1V, temperature_B, top_k_B, top_p_B, uniform_B);
             logits = last_B1V = logits_BTV[:, T-1:], caches

    It is asked for something else, so this is no pass: numbers are judged from here on.
    Raises ValueError where the graph's results are no logits [B,T,V] and caches.
    """
    if graph.names[:1] != (LOGITS,) or graph.outputs[0].type.rank != 3:
        raise ValueError(
            "it gives no logits of tokens, so there is no next one to choose: use the head logits"
        )
    logits, *caches = graph.outputs
    last = last_of(logits)
    wishes = [INPUT(name=name, dtype=dtype, shape=(B,)) for name, dtype in WISHES.items()]
    chosen = make(CHOOSE_TOKEN, last, *wishes, origin=logits.node.origin).values
    return Graph((*graph.inputs, *wishes), (*chosen, last, *caches), (*RESULTS, *graph.names))


def last_of(x: Value) -> Value:
    """[B,1,V]: the last of the tokens [B,T,V]."""
    tokens = x.shape[1]
    return SLICE(x, axis=1, start=plain(tokens - 1), stop=tokens, origin=x.node.origin)
