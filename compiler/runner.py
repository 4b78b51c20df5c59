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
from .session import ELEMENTS, copy, memory, open_session, run_options, simulated

# The numbers of a cache, by onnxruntime's name for them.
STORED = {"tensor(float)": DTYPES["f32"], "tensor(bfloat16)": DTYPES["bf16"]}
CHUNK = 512  # tokens of a prompt that go through the model at once, so its logits stay small
ROOM = 256  # rows that a cache on a device grows by, so that texts of about one length share what is recorded

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


class Artifact:
    """A loaded model. `session` is the onnxruntime.InferenceSession, for whoever wants to use it directly."""

    def __init__(self, folder: Path, manifest: Manifest, session: Any) -> None:
        self.folder = folder
        self.manifest = manifest
        self.session = session
        inputs = {each.name: each for each in session.get_inputs()}
        self._caches = {name: each for name, each in inputs.items() if name.startswith("past.")}
        self._language_model = "input_ids" in inputs
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

        Empty arrays, or tensors of undefined contents where the kernels have a memory of their own.
        """
        if not self.on_device:
            return self.empty(batch, rows)
        facts = self.manifest.target
        return {name: memory(facts, *each) for name, each in self._forms(batch, rows).items()}

    def empty(self, batch: int, rows: int) -> dict[str, Any]:
        """The same as arrays of zeros in any case."""
        return {name: np.zeros(*each) for name, each in self._forms(batch, rows).items()}

    def _forms(self, batch: int, rows: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each cache."""
        return {
            name: ((batch, int(each.shape[1]), rows, int(each.shape[3])), STORED[each.type])
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

        mask i64 [B, S+T] covers the S cached tokens and the new ones: 0 for padding, which is on the left.
        """
        return np.asarray(self.run(ids, mask, cache).get_outputs()[-1].numpy())

    def run(self, ids: Array, mask: Array, cache: Cache, logits: Any = None) -> Any:
        """The same step; gives the binding that it ran with. logits: where they go, None for a new array."""
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids, np.int64))
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask, np.int64))
        bind(binding, cache)
        if logits is None:
            binding.bind_output("logits", "cpu")
        else:
            binding.bind_ortvalue_output("logits", logits)
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
        return self.step(ids, mask, self.cache(*ids.shape))

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
            token = choose(texts.last(new, mask))
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

    def last(self, ids: Array, mask: Array) -> Array:
        """The same. Only the last token's logits are fetched: those before it go in by themselves."""
        for chunk, known in chunks(ids[:, :-1], mask[:, :-1]):
            self.feed(chunk, known)
        return np.asarray(self.step(ids[:, -1:], mask)[:, -1])

    def feed(self, ids: Array, mask: Array) -> None:
        """As step, with logits that nobody looks at."""
        shape = (*ids.shape, self.artifact.vocabulary)
        unseen = memory(self.artifact.manifest.target, shape, DTYPES["f32"])
        self.artifact.run(ids, mask, self.cache, unseen)

    def fits(self, batch: int, rows: int) -> bool:
        """Whether others may take its place."""
        return (self.batch, self.rows) == (batch, rows)

    def step(self, ids: Array, mask: Array) -> Array:
        if ids.shape[1] > 1:
            return super().step(ids, mask)
        wide = np.zeros((self.batch, self.rows), np.int64)
        wide[:, : mask.shape[1]] = mask
        logits = np.empty((self.batch, 1, self.artifact.vocabulary), np.float32)
        copy(np.ascontiguousarray(ids, np.int64), self.ids)
        copy(wide, self.mask)
        self.artifact.session.run_with_iobinding(self.binding, run_options(self.number))
        copy(self.logits, logits)
        return logits


def bind(binding: Any, cache: Cache) -> None:
    """Each cache as what goes in and what comes out, so that it is written in place."""
    for past, rows in cache.items():
        present = past.replace("past", "present", 1)
        if isinstance(rows, np.ndarray):
            place = ("cpu", 0, ELEMENTS[rows.dtype], rows.shape, rows.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        else:
            binding.bind_ortvalue_input(past, rows)
            binding.bind_ortvalue_output(present, rows)


def chunks(new: Array, mask: Array) -> Iterator[tuple[Array, Array]]:
    """New tokens i64 [B, T] some at a time, each with the mask [B, S+T] up to its end."""
    seen = mask.shape[1] - new.shape[1]
    for start in range(0, new.shape[1], CHUNK):
        chunk = new[:, start : start + CHUNK]
        yield chunk, mask[:, : seen + start + chunk.shape[1]]


class Sampler:
    """Chooses a token from logits [B, vocab]: the most likely, or a draw when temperature is above 0."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float, seed: int | None) -> None:
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: Array) -> Array:
        if self._temperature <= 0:
            return np.asarray(np.argmax(logits, axis=-1))
        order = np.argsort(-logits, axis=-1, kind="stable")[:, : self._top_k]
        likely = np.take_along_axis(logits, order, -1).astype(np.float64)
        with np.errstate(over="ignore"):  # a temperature near 0 makes the unlikely infinitely so
            chance = np.exp((likely - likely[:, :1]) / self._temperature)
        chance /= chance.sum(-1, keepdims=True)
        # The most likely tokens up to a total chance of top_p; always the first.
        chance[:, 1:][(np.cumsum(chance, -1) - chance)[:, 1:] >= self._top_p] = 0
        pick = [self._random.choice(row.size, p=row / row.sum()) for row in chance]
        return np.take_along_axis(order, np.array(pick)[:, None], -1)[:, 0]
