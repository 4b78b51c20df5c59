"""Multi-head latent attention on Hopper: the cache's writes and the ways to attend over it."""

from collections.abc import Mapping, Sequence

from ...base import Kernel, Schedule
from ..program import Builder, Step
from ..sm import Sm
from ..widths import tiled
from .latent_decode import absorbed
from .latent_mla import mla_decode
from .latent_plain import plain
from .latent_prefill import materialised
from .latent_write import latent_write


def latent_attention(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Absorbed for few new tokens, materialised for many; neither where sizes do not fit the tiles."""
    if not tiled(kernel):
        return [Step(plain(kernel), overlap=True)]
    few = f"tokens <= {schedule['a_most']}"
    return [*absorbed(kernel, schedule, sm, few), *materialised(kernel, schedule, f"!({few})")]


BUILDERS: Mapping[str, Builder] = {
    "latent_attention": latent_attention,
    "latent_write": latent_write,
    "mla_decode": mla_decode,
}
