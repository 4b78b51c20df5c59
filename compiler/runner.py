"""Running an artifact: logits, and generation with the cache updated in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import artifact
from .ir import DTYPES, Array
from .manifest import Manifest
from .sampler import GREEDY, Sampler
from .session import copy, memory, open_session, run_options, simulated
from .texts import PAGES, BadRequest, Cache, Recorded, Texts, bind

# The numbers of a cache, by onnxruntime's name for them.
STORED = {
    "tensor(float)": DTYPES["f32"],
    "tensor(float16)": DTYPES["f16"],
    "tensor(bfloat16)": DTYPES["bf16"],
    "tensor(uint8)": DTYPES["u8"],
    "tensor(int8)": DTYPES["i8"],
}
ROOM = 256  # rows that a cache on a device grows by, so that texts of about one length share what is recorded


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
        """Caches [batch, heads, rows, width] by input name, with room for `rows` tokens, as they are stored.

        Empty arrays, or tensors of undefined contents where the kernels have a memory of their own. In pages:
        pools [pages, heads, rows of a page, width], and the table that gives each text pages of its own.
        """
        if not self.on_device:
            return self.empty(batch, rows)
        facts, table = self.manifest.target, self.filled(self.table(batch, rows))
        return {name: memory(facts, *each) for name, each in self._forms(batch, rows).items()} | dict(table)

    def empty(self, batch: int, rows: int) -> dict[str, Any]:
        """The same as arrays of zeros in any case."""
        pools = {name: zeros(*each) for name, each in self._forms(batch, rows).items()}
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
        return np.asarray(self.run(ids, mask, self.bound(cache)).get_outputs()[-1].numpy())

    def bound(self, cache: Cache) -> Any:
        """A binding of these caches, which must outlive it, to run with often, for one result."""
        binding = self.session.io_binding()
        bind(binding, cache)
        return binding

    def run(
        self,
        ids: Array,
        mask: Array,
        binding: Any,
        place: Any = None,
        result: str = "logits",
        choose: Sampler = GREEDY,
    ) -> Any:
        """The same step with caches that are bound; gives the binding, whose last output is the result:
        "logits" or, where the artifact chooses, "token". place: where it goes, None for a new array.
        """
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids, np.int64))
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask, np.int64))
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


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that starts at a page; numpy's start within a cache line, where loads of rows are two each."""
    size, page = int(np.prod(shape)) * np.dtype(dtype).itemsize, 4096
    memory = np.zeros(size + page, np.uint8)
    start = -memory.ctypes.data % page
    aligned: Array = memory[start : start + size].view(dtype).reshape(shape)
    return aligned
