"""HIVM written by hand, as the vendor's compiler prints it: small kernels with one fault or none."""

from __future__ import annotations

UB, GM = "#hivm.address_space<ub>", "#hivm.address_space<gm>"
F32 = f"memref<64xf32, {UB}>"
ROW = f"memref<64xf32, strided<[1], offset: ?>, {GM}>"
ARRAY = f"memref<?xf32, {GM}>"
GIVEN = ("i64", f"memref<?xi8, {GM}>", f"memref<?xi8, {GM}>", ARRAY, ARRAY, "i32", "i32", "i32", "i32")


def module(*lines: str, core: str = "AIV", name: str = "kernel") -> str:
    """One function k(ffts, locks, workspace, %x, %y, %n, grid): `lines` in it, after some constants."""
    places = "xyn"
    names = [f"%arg{i}" for i in range(3)] + [f"%{place}" for place in places] + ["%gx", "%gy", "%gz"]
    arguments = ", ".join(f"{each}: {type_}" for each, type_ in zip(names, GIVEN))
    numbers = [(f"%c{n}", n, "i64") for n in (0, 64, 256, 512)] + [("%i0", 0, "index"), ("%i64", 64, "index")]
    constants = [f'{each} = "arith.constant"() <{{value = {n} : {t}}}> : () -> {t}' for each, n, t in numbers]
    body = "\n".join(f"    {each}" for each in (*constants, *lines, '"func.return"() : () -> ()'))
    head = f'<{{function_type = ({", ".join(GIVEN)}) -> (), sym_name = "{name}"}}>'
    tail = f"{{hacc.entry, hivm.func_core_type = #hivm.func_core_type<{core}>}} : () -> ()"
    function = f'  "func.func"() {head} ({{\n  ^bb0({arguments}):\n{body}\n  }}) {tail}'
    return f'"builtin.module"() ({{\n{function}\n}}) : () -> ()\n'


def buffer(name: str, place: str, type_: str = F32) -> str:
    """A buffer planned at a constant's address."""
    segments = "<{operandSegmentSizes = array<i32: 1, 0>}>"
    return f'{name} = "hivm.hir.pointer_cast"({place}) {segments} : (i64) -> {type_}'


def row(name: str, of: str, offset: str = "%i0") -> str:
    """64 elements of an array from an offset on."""
    attributes = (
        "<{operandSegmentSizes = array<i32: 1, 1, 0, 0>, static_offsets = array<i64: -9223372036854775808>, "
        "static_sizes = array<i64: 64>, static_strides = array<i64: 1>}>"
    )
    return f'{name} = "memref.reinterpret_cast"({of}, {offset}) {attributes} : ({ARRAY}, index) -> {ROW}'


def load(source: str, target: str) -> str:
    attributes = (
        "<{init_out_buffer = false, may_implicit_transpose_with_last_axis = false, "
        "operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0>}>"
    )
    return f'"hivm.hir.load"({source}, {target}) {attributes} : ({ROW}, {F32}) -> ()'


def store(source: str, target: str) -> str:
    return f'"hivm.hir.store"({source}, {target}) : ({F32}, {ROW}) -> ()'


def add(left: str, right: str, target: str) -> str:
    segments = "operandSegmentSizes = array<i32: 2, 1, 0>"
    attributes = f"<{{broadcast = array<i64>, {segments}, transpose = array<i64>}}>"
    return f'"hivm.hir.vadd"({left}, {right}, {target}) {attributes} : ({F32}, {F32}, {F32}) -> ()'


def flag(what: str, source: str, target: str, event: int = 0) -> str:
    """set or wait."""
    return (
        f'"hivm.hir.{what}_flag"() <{{set_pipe = #hivm.pipe<PIPE_{source}>, static_event_id = '
        f"#hivm.event<EVENT_ID{event}>, wait_pipe = #hivm.pipe<PIPE_{target}>}}> : () -> ()"
    )


def handed(source: str, target: str, event: int = 0) -> tuple[str, str]:
    """A flag set, and waited for."""
    return flag("set", source, target, event), flag("wait", source, target, event)


def barrier(pipe: str) -> str:
    return f'"hivm.hir.pipe_barrier"() <{{pipe = #hivm.pipe<PIPE_{pipe}>}}> : () -> ()'


DOUBLED = (  # y = 2 x, as it should be
    *(buffer("%a", "%c0"), buffer("%b", "%c256"), row("%from", "%x"), row("%to", "%y")),
    *(load("%from", "%a"), *handed("MTE2", "V"), add("%a", "%a", "%b")),
    *(*handed("V", "MTE3"), store("%b", "%to")),
)
