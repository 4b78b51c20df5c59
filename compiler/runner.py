"""Running an artifact: logits, and generation with the cache updated in place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import artifact
from .ir import DTYPES, Array
from .manifest import Manifest
from .ops.pages import expect_pages
from .ops.sampling import CHOOSE_TOKEN
from .session import ELEMENTS, copy, memory, open_session, run_options, simulated

# The numbers of a cache, by onnxruntime's name for them.
STORED = {"tensor(float)": DTYPES["f32"], "tensor(bfloat16)": DTYPES["bf16"]}
CHUNK = 512  # tokens of a prompt that go through the model at once, so its logits stay small
ROOM = 256  # rows that a cache on a device grows by, so that texts of about one length share what is recorded

PAGES = "pages"  # the input that says where rows are, of an artifact with caches in pages

Cache = Mapping[str, Any]  # by input name: arrays, or tensors in the memory of the target's kernels


class BadRequest(ValueError):
    """What was asked of an artifact does not fit it; the text says what would."""


def load(
    folder: str | Path, threads: int | None = None, verify: artifact.Verify = "full", kernels: bool = True
) -> Artifact:
    """Verify an artifact, then open it in onnxruntime.

    threads: of the session, None for onnxruntime's choice. verify: "full" or "size", see artifact.
    kernels: False runs the standard-op functions instead of the kernel library.
    Raises BadArtifact, with what is wrong, before anything is opened.
    """
    path = Path(folder).absolute()
    found = artifact.verify(path, verify, kernels)
    return Artifact(path, found, open_session(path, found, threads, kernels))


class Sampler:
    """How tokens are chosen: the most likely, or drawn where temperature is above 0 (ops/sampling.py)."""

    def __init__(
        self, temperature: float = 0.0, top_k: int | None = None, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        self._temperature, self._top_k, self._top_p = temperature, top_k or 0, top_p
        self._random = np.random.default_rng(seed)

    def wishes(self, batch: int) -> dict[str, Array]:
        """What an artifact that chooses tokens itself is asked for so many texts; drawn anew each time."""
        every = np.ones(batch, np.float32)
        drawn = self._random.random(batch, np.float32) if self._temperature > 0 else 0 * every
        return {
            "temperature": every * np.float32(self._temperature),
            "top_k": np.full(batch, self._top_k, np.int64),
            "top_p": every * np.float32(self._top_p),
            "uniform": drawn,
        }

    def __call__(self, logits: Array) -> Array:
        """Tokens i64 [B] by logits f32 [B, vocab]: the same, chosen here."""
        if self._temperature <= 0:
            return np.asarray(np.argmax(logits, axis=-1))
        return np.asarray(CHOOSE_TOKEN.reference(logits, **self.wishes(len(logits)))[0])


GREEDY = Sampler()


class Artifact:
    """A loaded model. `session` is the onnxruntime.InferenceSession, for whoever wants to use it directly."""

    def __init__(self, folder: Path, manifest: Manifest, session: Any) -> None:
        self.folder = folder
        self.manifest = manifest
        self.session = session
        inputs = {each.name: each for each in session.get_inputs()}
        self._caches = {name: each for name, each in inputs.items() if name.startswith("past.")}
        self._paged = PAGES in inputs
        self._language_model = "input_ids" in inputs
        self.chooses = "uniform" in inputs  # whether it gives tokens, and logits of the last one only
        own = manifest.target.get("provider") and len(session.get_providers()) > 1
        self.on_device = bool(own)  # whether caches are in a memory of the kernels' own
        self.replays = self.on_device and bool(manifest.target.get("whole"))
        self._texts: Texts | None = None

    @property
    def simulated(self) -> str:
        """What stands in for the device that kernels are for: "simulated on this CPU", or nothing."""
        return simulated(self.folder, self.manifest.target) if self.on_device else ""

    @property
    def vocabulary(self) -> int:
        """How many tokens there are. Raises BadRequest where there are none."""
        self._expect_language_model()
        return int(next(each.shape[-1] for each in self.session.get_outputs() if each.name == "logits"))

    def cache(self, batch: int, rows: int) -> dict[str, Any]:
        """Caches f32 or bf16 [batch, heads, rows, width] by input name, with room for `rows` tokens.

        Empty arrays, or tensors of undefined contents where the kernels have a memory of their own. In pages:
        pools [pages, heads, rows of a page, width], and the table that gives each text pages of its own.
        """
        if not self.on_device:
            return self.empty(batch, rows)
        facts, table = self.manifest.target, self.filled(self.table(batch, rows))
        return {name: memory(facts, *each) for name, each in self._forms(batch, rows).items()} | dict(table)

    def empty(self, batch: int, rows: int) -> dict[str, Any]:
        """The same as arrays of zeros in any case."""
        pools = {name: np.zeros(*each) for name, each in self._forms(batch, rows).items()}
        return pools | self.table(batch, rows)

    def table(self, batch: int, rows: int) -> dict[str, Array]:
        """The pages i64 [batch, n] of a cache of that room, one after the other; nothing without pages."""
        if not self._paged:
            return {}
        each = -(-rows // self.manifest.cache["page_rows"])
        return {PAGES: np.arange(batch * each).reshape(batch, each)}

    def _forms(self, batch: int, rows: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each cache, or pool."""
        count, page = batch, rows
        if self._paged:
            page = self.manifest.cache["page_rows"]
            count = batch * -(-rows // page)
        return {
            name: ((count, int(each.shape[1]), page, int(each.shape[3])), STORED[each.type])
            for name, each in self._caches.items()
        }

    def filled(self, arrays: Mapping[str, Array]) -> Cache:
        """Caches that hold what the arrays do: where the kernels have no memory of their own, the arrays."""
        if not self.on_device:
            return arrays
        facts = self.manifest.target
        cache = {name: memory(facts, rows.shape, rows.dtype) for name, rows in arrays.items()}
        for name, rows in arrays.items():
            copy(rows, cache[name])
        return cache

    def step(self, ids: Array, mask: Array, cache: Cache) -> Array:
        """Logits f32 [B, T, vocab] of new tokens i64 [B, T]; their rows are written into `cache`, in place.
        Of an artifact that chooses tokens [B, 1, vocab]: those of the last.

        mask i64 [B, S+T] covers the S cached tokens and the new ones: 0 for padding, which is on the left.
        """
        return np.asarray(self.run(ids, mask, cache).get_outputs()[-1].numpy())

    def run(
        self,
        ids: Array,
        mask: Array,
        cache: Cache,
        place: Any = None,
        result: str = "logits",
        choose: Sampler = GREEDY,
    ) -> Any:
        """The same step; gives the binding that it ran with, whose last output is the result: "logits" or,
        where the artifact chooses, "token". place: where it goes, None for a new array.
        """
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids, np.int64))
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask, np.int64))
        bind(binding, cache)
        for name, wish in choose.wishes(len(ids)).items() if self.chooses else ():
            binding.bind_cpu_input(name, wish)
        if place is None:
            binding.bind_output(result, "cpu")
        else:
            binding.bind_ortvalue_output(result, place)
        self.session.run_with_iobinding(binding, run_options(None) if self.replays else None)
        return binding

    def texts(self, batch: int, rows: int) -> Texts:
        """Texts of up to so many tokens, none of which has any yet. Those given before are at an end."""
        if not self.replays:
            return Texts(self, batch, rows)
        rows = -(-rows // ROOM) * ROOM
        if not (isinstance(self._texts, Recorded) and self._texts.fits(batch, rows)):
            self._texts = Recorded(self, batch, rows)
        return self._texts

    def logits(self, ids: Any, attention_mask: Any = None) -> Array:
        """Logits f32 [B, T, vocab] of whole sequences i64 [B, T]; attention_mask i64 [B, T], left padding."""
        ids, mask = self.prompt(ids, attention_mask)
        cache, tokens = self.cache(*ids.shape), ids.shape[1]
        if not self.chooses:
            return self.step(ids, mask, cache)
        ends = range(1, tokens + 1)  # it gives one token's at a time
        return np.hstack([self.step(ids[:, end - 1 : end], mask[:, :end], cache) for end in ends])

    def generate(
        self,
        ids: Any,
        max_new_tokens: int,
        attention_mask: Any = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | None = None,
    ) -> Array:
        """The prompts i64 [B, T] and what follows, i64 [B, T + new]; greedy unless temperature is above 0.

        attention_mask i64 [B, T]: 0 for padding, which is on the left. A sequence that said eos_token_id goes
        on with it; generation ends when all have, or after max_new_tokens.
        """
        if max_new_tokens < 0 or not 0 <= temperature < np.inf:
            asked = f"{max_new_tokens} tokens at temperature {temperature}"
            raise BadRequest(f"got a request for {asked}; neither may be negative")
        ids, mask = self.prompt(ids, attention_mask, max_new_tokens)
        if not mask[:, -1].all():
            raise BadRequest("a prompt ends with padding (0 in its mask); put padding on its left")
        choose = Sampler(temperature, top_k, top_p, seed)
        texts = self.texts(len(ids), ids.shape[1] + max_new_tokens)
        done = np.zeros(len(ids), bool)
        new = ids  # tokens to feed next
        for _ in range(max_new_tokens):
            token = texts.next(new, mask, choose)
            token = np.where(done, eos_token_id or 0, token)
            new = token[:, None]
            ids, mask = np.hstack([ids, new]), np.hstack([mask, np.ones_like(new)])
            done |= token == eos_token_id
            if done.all():
                break
        return np.asarray(ids)

    def _expect_language_model(self) -> None:
        if not self._language_model:
            raise BadRequest(f"{self.folder} is no language model; use .session.run with its own inputs")

    def prompt(self, ids: Any, mask: Any = None, new: int = 0) -> tuple[Array, Array]:
        """Token ids and mask i64 [B, T], if the model can take them and `new` more; else BadRequest."""
        self._expect_language_model()
        try:
            ids = np.asarray(ids, np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadRequest(
                f"got token ids that are no table of integers: {error}; expected [batch, tokens], shorter "
                "prompts padded on the left"
            ) from None
        if ids.ndim != 2 or not ids.size:
            raise BadRequest(f"got token ids of shape {list(ids.shape)}, expected [batch, tokens], none 0")
        if not 0 <= ids.min() <= ids.max() < self.vocabulary:
            worst = int(ids.min() if ids.min() < 0 else ids.max())
            raise BadRequest(f"got token id {worst}, but the vocabulary is 0..{self.vocabulary - 1}")
        mask = np.ones_like(ids) if mask is None else np.asarray(mask)
        if mask.shape != ids.shape:
            raise BadRequest(f"got an attention mask {list(mask.shape)} for token ids {list(ids.shape)}")
        if not np.isin(mask, (0, 1)).all():
            raise BadRequest("got an attention mask with other values than 1 (a token) and 0 (padding)")
        mask = mask.astype(np.int64)
        most, wanted = self.manifest.positions, int(mask.sum(axis=1).max()) + new
        if most is not None and wanted > most:
            raise BadRequest(f"the model has {most} positions, prompt and new tokens need {wanted}")
        return ids, mask


class Texts:
    """Some texts that grow together: what is known of their earlier tokens, and how to go on."""

    def __init__(self, artifact: Artifact, batch: int, rows: int) -> None:
        self.artifact, self.batch, self.rows = artifact, batch, rows
        self.cache = artifact.cache(batch, rows)

    def step(self, ids: Array, mask: Array) -> Array:
        """Logits f32 [B, T, vocab] of new tokens i64 [B, T]; mask i64 [B, S+T] as for Artifact.step."""
        return self.artifact.step(ids, mask, self.cache)

    def last(self, ids: Array, mask: Array) -> Array:
        """Logits f32 [B, vocab] of the last of them; the tokens go in a chunk at a time."""
        for chunk, known in chunks(ids, mask):
            logits = self.step(chunk, known)
        return np.asarray(logits[:, -1])

    def next(self, ids: Array, mask: Array, choose: Sampler = GREEDY) -> Array:
        """The tokens i64 [B] that follow new ones, of which it sees some at a time, as `last` does."""
        if not self.artifact.chooses:
            return choose(self.last(ids, mask))
        *before, (end, known) = chunks(ids, mask)
        for chunk, its in before:
            self.artifact.run(chunk, its, self.cache, result="token")
        ran = self.artifact.run(end, known, self.cache, result="token", choose=choose)
        return np.asarray(ran.get_outputs()[-1].numpy())


class Recorded(Texts):
    """Texts on a device, whose steps of one token are recorded once and then replayed.

    All that such a step reads and writes stays at one place: its mask is as wide as the caches have rows,
    with zeros after the new token.
    """

    count = itertools.count(1)  # of recordings in this process: each has its number

    def __init__(self, artifact: Artifact, batch: int, rows: int) -> None:
        super().__init__(artifact, batch, rows)
        facts, self.number = artifact.manifest.target, next(self.count)
        self.ids = memory(facts, (batch, 1), DTYPES["i64"])
        self.mask = memory(facts, (batch, rows), DTYPES["i64"])
        self.logits = memory(facts, (batch, 1, artifact.vocabulary), DTYPES["f32"])
        self.binding = artifact.session.io_binding()
        self.binding.bind_ortvalue_input("input_ids", self.ids)
        self.binding.bind_ortvalue_input("attention_mask", self.mask)
        bind(self.binding, self.cache)
        self.binding.bind_ortvalue_output("logits", self.logits)
        self.wished: dict[str, tuple[Array, Any]] = {}  # what was asked last, here and in the device's memory
        if artifact.chooses:
            self.token = memory(facts, (batch,), DTYPES["i64"])
            self.binding.bind_ortvalue_output("token", self.token)
            for name, wish in GREEDY.wishes(batch).items():
                self.wished[name] = wish, memory(facts, wish.shape, wish.dtype)
                copy(*self.wished[name])
                self.binding.bind_ortvalue_input(name, self.wished[name][1])

    def last(self, ids: Array, mask: Array) -> Array:
        """The same. Only the last token's logits are fetched: those before it go in by themselves."""
        for chunk, known in chunks(ids[:, :-1], mask[:, :-1]):
            self.feed(chunk, known)
        return np.asarray(self.step(ids[:, -1:], mask)[:, -1])

    def next(self, ids: Array, mask: Array, choose: Sampler = GREEDY) -> Array:
        """The same; logits stay where they are."""
        if not self.artifact.chooses:
            return choose(self.last(ids, mask))
        for chunk, known in chunks(ids[:, :-1], mask[:, :-1]):
            self.feed(chunk, known)
        self.replay(ids[:, -1:], mask, choose)
        token = np.empty(self.batch, np.int64)
        copy(self.token, token)
        return token

    def feed(self, ids: Array, mask: Array) -> None:
        """As step, with logits that nobody looks at."""
        tokens = 1 if self.artifact.chooses else ids.shape[1]
        shape = (self.batch, tokens, self.artifact.vocabulary)
        unseen = memory(self.artifact.manifest.target, shape, DTYPES["f32"])
        self.artifact.run(ids, mask, self.cache, unseen)

    def fits(self, batch: int, rows: int) -> bool:
        """Whether others may take its place."""
        return (self.batch, self.rows) == (batch, rows)

    def step(self, ids: Array, mask: Array) -> Array:
        if ids.shape[1] > 1:
            return super().step(ids, mask)
        self.replay(ids, mask)
        logits = np.empty((self.batch, 1, self.artifact.vocabulary), np.float32)
        copy(self.logits, logits)
        return logits

    def replay(self, ids: Array, mask: Array, choose: Sampler = GREEDY) -> None:
        """A step of one token, whose results stay in the device's memory."""
        wide = np.zeros((self.batch, self.rows), np.int64)
        wide[:, : mask.shape[1]] = mask
        copy(np.ascontiguousarray(ids, np.int64), self.ids)
        copy(wide, self.mask)
        for name, wish in choose.wishes(self.batch).items() if self.wished else ():
            before, place = self.wished[name]
            if not np.array_equal(before, wish):
                copy(wish, place)
                self.wished[name] = wish, place
        self.artifact.session.run_with_iobinding(self.binding, run_options(self.number))


def bind(binding: Any, cache: Cache) -> None:
    """Each cache as what goes in and what comes out, so that it is written in place; a table only goes in."""
    if PAGES in cache:
        bind_table(binding, cache)
    for past, rows in cache.items():
        if past == PAGES:
            continue
        present = past.replace("past", "present", 1)
        if isinstance(rows, np.ndarray):
            place = ("cpu", 0, ELEMENTS[rows.dtype], rows.shape, rows.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        else:
            binding.bind_ortvalue_input(past, rows)
            binding.bind_ortvalue_output(present, rows)


def bind_table(binding: Any, cache: Cache) -> None:
    """The table of a cache in pages. Raises BadRequest where an array says a page that no pool has; where it
    is in a device's memory, the kernels see to it: what would be read there is NaN, and nothing is written.
    """
    table = cache[PAGES]
    if not isinstance(table, np.ndarray):
        binding.bind_ortvalue_input(PAGES, table)
        return
    try:
        expect_pages(table, min(len_of(pool) for name, pool in cache.items() if name != PAGES))
    except ValueError as wrong:
        raise BadRequest(f"got a table of pages that does not fit: {wrong}") from None
    binding.bind_cpu_input(PAGES, np.ascontiguousarray(table, np.int64))


def len_of(pool: Any) -> int:
    """How many pages it has, be it an array or a tensor."""
    return len(pool) if isinstance(pool, np.ndarray) else int(pool.shape()[0])


def chunks(new: Array, mask: Array) -> Iterator[tuple[Array, Array]]:
    """New tokens i64 [B, T] some at a time, each with the mask [B, S+T] up to its end."""
    seen = mask.shape[1] - new.shape[1]
    for start in range(0, new.shape[1], CHUNK):
        chunk = new[:, start : start + CHUNK]
        yield chunk, mask[:, : seen + start + chunk.shape[1]]
