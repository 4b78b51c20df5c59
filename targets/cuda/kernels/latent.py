"""Multi-head latent attention on Hopper: the cache's writes and the ways to attend over it."""

from collections.abc import Mapping, Sequence

from ...base import Kernel, Schedule
from ...paged import unpaged
from ..program import Builder, Step
from ..sm import Sm
from ..widths import tiled
from .latent_decode import absorbed
from .latent_gather import materialised_paged
from .latent_mla import mla_decode
from .latent_paged import absorbed_paged, mla_decode_paged
from .latent_plain import plain, plain_paged
from .latent_prefill import materialised
from .latent_write import latent_write, latent_write_paged


def latent_attention(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Absorbed for few new tokens, materialised for many; neither where sizes do not fit the tiles."""
    if not tiled(kernel):
        return [Step(plain(kernel), overlap=True)]
    few = f"tokens <= {schedule['a_most']}"
    return [*absorbed(kernel, schedule, sm, few), *materialised(kernel, schedule, f"!({few})")]


def latent_attention_paged(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """The same over a cache in pages."""
    if not tiled(unpaged(kernel)):
        return [Step(plain_paged(kernel), overlap=True)]
    few = f"tokens <= {schedule['a_most']}"
    return [*absorbed_paged(kernel, schedule, sm, few), *materialised_paged(kernel, schedule, f"!({few})")]


BUILDERS: Mapping[str, Builder] = {
    "latent_attention": latent_attention,
    "latent_write": latent_write,
    "mla_decode": mla_decode,
    "latent_attention_paged": latent_attention_paged,
    "latent_write_paged": latent_write_paged,
    "mla_decode_paged": mla_decode_paged,
}
