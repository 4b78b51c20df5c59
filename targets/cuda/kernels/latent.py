"""Multi-head latent attention on Hopper: the cache's writes and the ways to attend over it."""

from collections.abc import Mapping, Sequence

from ...base import Kernel, Schedule
from ...paged import unpaged
from ..program import Builder, Step
from ..sm import Sm
from ..widths import tiled
from .latent_coded import absorbed_coded, mla_decode_coded
from .latent_decode import absorbed
from .latent_gather import materialised_coded, materialised_paged
from .latent_mla import mla_decode as mla_decode_bf16
from .latent_paged import absorbed_paged
from .latent_paged import mla_decode_paged as mla_decode_bf16_paged
from .latent_plain import plain, plain_coded, plain_coded_paged, plain_paged
from .latent_prefill import materialised
from .latent_write import latent_write, latent_write_paged


def latent_attention(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Absorbed for few new tokens, materialised for many; neither where sizes do not fit the tiles."""
    coded = kernel.cache == "fp8"
    if not tiled(kernel):
        return [Step(plain_coded(kernel) if coded else plain(kernel), overlap=True)]
    few = f"tokens <= {schedule['a_most']}"
    if coded:
        return over_codes(kernel, schedule, sm, few, paged=False)
    return [*absorbed(kernel, schedule, sm, few), *materialised(kernel, schedule, f"!({few})")]


def latent_attention_paged(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """The same over a cache in pages."""
    coded = kernel.cache == "fp8"
    if not tiled(unpaged(kernel)):
        return [Step(plain_coded_paged(kernel) if coded else plain_paged(kernel), overlap=True)]
    few = f"tokens <= {schedule['a_most']}"
    if coded:
        return over_codes(kernel, schedule, sm, few, paged=True)
    return [*absorbed_paged(kernel, schedule, sm, few), *materialised_paged(kernel, schedule, f"!({few})")]


def over_codes(kernel: Kernel, schedule: Schedule, sm: Sm, few: str, paged: bool) -> Sequence[Step]:
    """The same over latents in fp8."""
    absorbed = absorbed_coded(kernel, schedule, sm, few, paged)
    return [*absorbed, *materialised_coded(kernel, schedule, f"!({few})", paged)]


def mla_decode(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Attention proper, for benchmarks."""
    return (mla_decode_coded if kernel.cache == "fp8" else mla_decode_bf16)(kernel, schedule, sm)


def mla_decode_paged(kernel: Kernel, schedule: Schedule, sm: Sm) -> Sequence[Step]:
    """Attention proper, for benchmarks. Raises ValueError over latents in fp8."""
    if kernel.cache == "fp8":
        raise ValueError("there is no mla_decode_paged over latents in fp8; latent_attention_paged is there")
    return mla_decode_bf16_paged(kernel, schedule, sm)


BUILDERS: Mapping[str, Builder] = {
    "latent_attention": latent_attention,
    "latent_write": latent_write,
    "mla_decode": mla_decode,
    "latent_attention_paged": latent_attention_paged,
    "latent_write_paged": latent_write_paged,
    "mla_decode_paged": mla_decode_paged,
}
