"""How each op becomes ONNX nodes: standard ops, and ONNX Runtime's own where they are faster."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from arcompile.ir import Node
from arcompile.ops.nn import resize_matrix
from arcompile.targets.onnx_emit import DTYPES, LOWER, Emitter, Lower, Nodes, lowers

NUMPY = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "i64": np.int64,
         "i32": np.int32, "i8": np.int8, "u8": np.uint8, "bool": np.bool_}
END = np.iinfo(np.int64).max

_SAME = {
    "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "sin": "Sin",
    "cos": "Cos", "floor": "Floor", "erf": "Erf", "reciprocal": "Reciprocal", "relu": "Relu",
    "sigmoid": "Sigmoid", "abs": "Abs", "not": "Not", "and": "And", "or": "Or", "add": "Add",
    "sub": "Sub", "mul": "Mul", "pow": "Pow", "maximum": "Max", "minimum": "Min",
    "equal": "Equal", "less": "Less", "greater": "Greater", "less_equal": "LessOrEqual",
    "greater_equal": "GreaterOrEqual",
}


def _renamed(kind: str) -> Lower:
    return lambda e, n, x: e.op(kind, *x)


def _reduced(kind: str) -> Lower:
    return lambda e, n, x: e.op(kind, x[0], e.const(list(n.attrs["axes"])),
                                keepdims=int(n.attrs.get("keepdims", False)))


LOWER.update({name: _renamed(kind) for name, kind in _SAME.items()})


@lowers("rsqrt")
def rsqrt(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Reciprocal", e.op("Sqrt", x[0]))


@lowers("silu")
def silu(e: Emitter, n: Node, x: list[str]) -> str:
    return e.ms("QuickGelu", x[0], alpha=1.0)  # x * sigmoid(x), fused


def is_f32(n: Node) -> bool:
    return all(a.type.dtype == "f32" for a in n.args)


@lowers("gelu")
def gelu(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Gelu", x[0], approximate="tanh" if n.attrs.get("approximate", True) else "none")


def _integer(n: Node) -> bool:
    return n.args[0].type.dtype[0] in "iu"


@lowers("div")
def div(e: Emitter, n: Node, x: list[str]) -> str:
    if not _integer(n):
        return e.op("Div", *x)
    return e.op("Div", e.op("Sub", x[0], e.op("Mod", *x)), x[1])  # ONNX truncates; we floor


@lowers("mod")
def mod(e: Emitter, n: Node, x: list[str]) -> str:
    if _integer(n):
        return e.op("Mod", *x)
    whole = e.op("Floor", e.op("Div", *x))
    return e.op("Sub", x[0], e.op("Mul", whole, x[1]))


@lowers("where")
def where(e: Emitter, n: Node, x: list[str]) -> str:
    if n.outs[0].type.dtype != "bool":
        return e.op("Where", *x)
    return e.op("Or", e.op("And", x[0], x[1]), e.op("And", e.op("Not", x[0]), x[2]))  # no kernel


@lowers("cast")
def cast(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Cast", x[0], to=DTYPES[n.attrs["dtype"]])


@lowers("clip")
def clip(e: Emitter, n: Node, x: list[str]) -> str:
    dtype = n.args[0].type.dtype
    given = map(n.attrs.get, ("lo", "hi"))
    bounds = ["" if v is None else e.number(v, dtype) for v in given]
    return e.op("Clip", x[0], *bounds)


@lowers("const")
def const(e: Emitter, n: Node, x: list[str]) -> str:
    return e.number(n.attrs["value"], n.attrs["dtype"])


@lowers("arange")
def arange(e: Emitter, n: Node, x: list[str]) -> str:
    end = e.op("Squeeze", e.dim(n.attrs["shape"][0]), e.const([0]))
    out = e.op("Range", e.const(0), end, e.const(1))
    dtype = n.attrs["dtype"]
    return out if dtype == "i64" else e.op("Cast", out, to=DTYPES[dtype])


@lowers("full")
def full(e: Emitter, n: Node, x: list[str]) -> str:
    dtype = n.attrs["dtype"]
    value = e.onnx.numpy_helper.from_array(np.array([n.attrs["value"]], NUMPY[dtype]))
    return e.op("ConstantOfShape", e.shape(n.attrs["shape"]), value=value)


# --- shape ---------------------------------------------------------------------------------------


@lowers("reshape")
def reshape(e: Emitter, n: Node, x: list[str]) -> str:
    return e.reshape(x[0], n.args[0].type.shape, n.attrs["shape"])


@lowers("transpose")
def transpose(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Transpose", x[0], perm=list(n.attrs["perm"]))


@lowers("expand")
def expand(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Expand", x[0], e.shape(n.attrs["shape"]))


@lowers("concat")
def concat(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Concat", *x, axis=n.attrs["axis"])


@lowers("slice")
def slice_(e: Emitter, n: Node, x: list[str]) -> str:
    a = n.attrs
    end = END if a.get("step", 1) > 0 else -END
    bounds = (a["start"], end if a.get("stop") is None else a["stop"], a["axis"], a.get("step", 1))
    return e.op("Slice", x[0], *(e.const([v]) for v in bounds))


@lowers("split")
def split(e: Emitter, n: Node, x: list[str]) -> list[str]:
    sizes = n.attrs["sizes"]
    found = e.op("Split", x[0], e.const(list(sizes)), axis=n.attrs["axis"], outs=len(sizes))
    return found if isinstance(found, list) else [found]


@lowers("pad")
def pad(e: Emitter, n: Node, x: list[str]) -> str:
    pads = n.attrs["pads"]
    flat = [a for a, _ in pads] + [b for _, b in pads]
    value = e.number(n.attrs.get("value", 0), n.args[0].type.dtype)
    return e.op("Pad", x[0], e.const(flat), value)


@lowers("tail")
def tail(e: Emitter, n: Node, x: list[str]) -> str:
    axis = n.attrs["axis"] % n.args[0].type.rank
    if n.args[0].type.shape[axis] == n.args[1].type.shape[axis]:
        return x[0]
    start = e.op("Neg", e.op("Shape", x[1], start=axis, end=axis + 1))
    return e.op("Slice", x[0], start, e.const([END]), e.const([axis]))


# --- indexing and reductions ---------------------------------------------------------------------


@lowers("gather")
def gather(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Gather", *x, axis=n.attrs["axis"])


@lowers("take_along")
def take_along(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("GatherElements", *x, axis=n.attrs["axis"])


@lowers("put_along")
def put_along(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("ScatterElements", *x, axis=n.attrs["axis"])


LOWER.update({name: _reduced(kind) for name, kind in {
    "sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}.items()})


@lowers("argmax")
def argmax(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("ArgMax", x[0], axis=n.attrs["axis"], keepdims=0)


@lowers("topk")
def topk(e: Emitter, n: Node, x: list[str]) -> list[str]:
    return e.op("TopK", x[0], e.const([n.attrs["k"]]), axis=n.attrs.get("axis", -1), outs=2)


@lowers("cumsum")
def cumsum(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("CumSum", x[0], e.const(n.attrs["axis"]),
                exclusive=int(n.attrs.get("exclusive", False)))


@lowers("softmax")
def softmax(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Softmax", x[0], axis=n.attrs["axis"])


# --- nets ----------------------------------------------------------------------------------------


@lowers("conv2d")
def conv2d(e: Emitter, n: Node, x: list[str]) -> str:
    a = n.attrs
    return e.op("Conv", *x, strides=[a.get("stride", 1)] * 2, group=a.get("groups", 1),
                pads=list(a.get("pads", (0, 0, 0, 0))))


def ones(e: Emitter, n: Node) -> str:
    t = n.args[0].type
    return e.number(np.ones(t.shape[-1]), t.dtype)


@lowers("layer_norm")
def layer_norm(e: Emitter, n: Node, x: list[str]) -> str:
    x = x if len(x) > 1 else [*x, ones(e, n)]
    return e.op("LayerNormalization", *x, axis=-1, epsilon=n.attrs["eps"])


@lowers("rms_norm")
def rms_norm(e: Emitter, n: Node, x: list[str]) -> str:
    x = x if len(x) > 1 else [*x, ones(e, n)]
    return e.op("SimplifiedLayerNormalization", *x, axis=-1, epsilon=n.attrs["eps"])


@lowers("group_norm", "group_norm_silu")
def group_norm(e: Emitter, n: Node, x: list[str]) -> str:
    groups, silu = n.attrs["groups"], n.op == "group_norm_silu"
    t = n.args[0].type
    body = partial(_group_norm, shape=t.shape, dtype=t.dtype, groups=groups,
                   epsilon=n.attrs["eps"], silu=silu)
    if not is_f32(n):
        return body(e, *x)
    return str(e.kernel("GroupNormSilu" if silu else "GroupNorm", body, *x, e.const([groups]),
                        e.float([n.attrs["eps"]])))


def _group_norm(e: Nodes, x: str, w: str, b: str, *told: str, shape: Any, dtype: str, groups: int,
                epsilon: float, silu: bool) -> str:
    """Each group is an instance: reshape, normalise, scale and shift per channel."""
    flat = e.op("Reshape", x, e.const([0, groups, -1]))
    unit = e.op("InstanceNormalization", flat, e.number(np.ones(groups), dtype),
                e.number(np.zeros(groups), dtype), epsilon=epsilon)
    back = e.op("Reshape", unit, e.op("Shape", x))
    column = e.const([-1, *[1] * (len(shape) - 2)])
    w, b = e.op("Reshape", w, column), e.op("Reshape", b, column)
    y = e.op("Add", e.op("Mul", back, w), b)
    return str(e.ms("QuickGelu", y, alpha=1.0) if silu else y)


@lowers("l2_norm")
def l2_norm(e: Emitter, n: Node, x: list[str]) -> str:
    size = e.op("ReduceL2", x[0], e.const([n.attrs["axis"]]), keepdims=1)
    return e.op("Div", x[0], e.op("Max", size, e.number(
        n.attrs["eps"], n.args[0].type.dtype)))


@lowers("upsample")
def upsample(e: Emitter, n: Node, x: list[str]) -> str:
    f = float(n.attrs["factor"])
    return e.op("Resize", x[0], "", e.float([1, 1, f, f]), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@lowers("resize")
def resize(e: Emitter, n: Node, x: list[str]) -> str:
    """Two products by constant matrices: the same numbers on every target."""
    (_, _, h, w), (oh, ow), mode = n.args[0].type.shape, n.attrs["size"], n.attrs["mode"]
    assert isinstance(h, int)
    assert isinstance(w, int)
    rows, columns = resize_matrix(h, oh, mode), resize_matrix(w, ow, mode).T
    dtype = n.args[0].type.dtype
    wide = e.op("MatMul", e.number(rows, dtype), x[0])
    return e.op("MatMul", wide, e.number(np.ascontiguousarray(columns), dtype))
