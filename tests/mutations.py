"""Valid files with something wrong in them: what the fuzz gives to the program's readers."""

from __future__ import annotations

import copy
import json
import math
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# What people and programs write by mistake or in malice, and what readers stumble over.
NASTY = (
    "", " ", "\t", "\n", "x\ny", "\0", "..", "../..", "a/b", "a\\b", "-", "--x", "=1+1", "+x", "@x",
    "null", "true", "NaN", "0", "-1", "1e400", "9" * 400, "0x10", "é", "日本", "\u202eabc",
    "\ud800", "\x1b[2J", "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "${x}",
    "${", "$", "%s", "{}", "[", "{a: b}", "'", '"', "\\", ":", "#", "~", "???", "x" * 300,
    "\\input{x}", "_", "*", "sparta", "lora", "tiny-gemma", "float32", "gemma-2b",
    "model.safetensors",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 64, 255, 1000, 0.5, -0.0, 1e-320, 1.5, 1e100, -1e300, float("nan"),
    float("inf"), -float("inf"),
)  # fmt: skip
HUGE = (2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 1e308)

TEXTS = st.sampled_from(NASTY) | st.text(max_size=20)
SMALL = st.none() | st.booleans() | st.integers(-9, 99)
SCALARS = SMALL | st.sampled_from(NUMBERS) | st.sampled_from(NASTY)


def values(numbers: bool) -> st.SearchStrategy[Any]:
    """Any JSON value, small; with `numbers` also numbers beyond all sizes that memory has."""
    scalars = SCALARS | st.sampled_from(HUGE) if numbers else SCALARS
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    )


# ------------------------------------------------------------------------------------- JSON
def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all nodes."""
    items = value.items() if isinstance(value, dict) else []
    if isinstance(value, list):
        items = list(enumerate(value[:8]))
    return [above] + [path for key, inner in items for path in _paths(inner, (*above, key))]


@st.composite
def changed(draw: st.DrawFn, value: Any, numbers: bool = True) -> Any:
    """The JSON value with one to three of its nodes replaced, removed, doubled or renamed."""
    root = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 3))):
        paths = _paths(root[""], ("",))
        *above, last = draw(st.sampled_from(paths))
        holder: Any = root
        for key in above:
            holder = holder[key]
        other: Any = root
        for key in draw(st.sampled_from(paths)):
            other = other[key]
        ways = ["replace", "replace", "replace", "swap"]
        if holder is not root:
            ways += ["remove", "remove", "wrap"]
        if isinstance(holder, dict) and holder is not root:
            ways += ["rename", "add"]
        match draw(st.sampled_from(ways)):
            case "replace":
                holder[last] = draw(values(numbers))
            case "swap":
                holder[last] = copy.deepcopy(other)
            case "remove":
                del holder[last]
            case "wrap":
                holder[last] = [holder[last]]
            case "rename":
                holder[draw(TEXTS)] = holder.pop(last)
            case "add":
                holder[draw(TEXTS)] = draw(values(numbers))
    return root[""]


def as_json(value: Any) -> bytes:
    """As Python writes it, half surrogates and NaN among it."""
    return json.dumps(value).encode()


# ------------------------------------------------------------------------------------ bytes
@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with a part cut out, bits flipped, or something put in between."""
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    match draw(st.sampled_from(["cut", "end", "flip", "insert", "repeat", "empty"])):
        case "cut":
            return content[:at]
        case "end":
            return content + draw(st.binary(min_size=1, max_size=9))
        case "flip":
            flipped = bytearray(content)
            if flipped:
                flipped[at] ^= draw(st.integers(1, 255))
            return bytes(flipped)
        case "insert":
            text = draw(st.sampled_from(NASTY)).encode("utf-8", "surrogatepass")
            return content[:at] + (text or b"\xff\xfe") + content[at:]
        case "repeat":
            return content[:at] + content[at : at + 40] * 3 + content[at + 40 :]
        case _:
            return draw(st.sampled_from([b"", b"\0", b"[" * 100_000, b"1" * 5000, b"\xff" * 9]))


@st.composite
def changed_lines(draw: st.DrawFn, content: bytes, between: bytes) -> bytes:
    """A table's lines with fields replaced, lost or doubled; `between` separates fields."""
    lines = content.split(b"\n")
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(lines) - 1))
        fields = lines[row].split(between)
        place = draw(st.integers(0, len(fields) - 1))
        match draw(st.sampled_from(["replace", "lose", "double", "line", "no line"])):
            case "replace":
                fields[place] = draw(TEXTS).encode("utf-8", "surrogatepass")
            case "lose":
                del fields[place]
            case "double":
                fields.insert(place, fields[place])
            case "line":
                lines.insert(row, draw(TEXTS).encode("utf-8", "surrogatepass"))
                continue
            case _:
                fields = []
        lines[row] = between.join(fields)
    return b"\n".join(lines)


# ------------------------------------------------------------------------------ safetensors
@st.composite
def changed_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with another header, or with other numbers behind it."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    if draw(st.booleans()):
        header = draw(_other_tensors(header) | changed(header))
    else:
        body = draw(damaged(body) | st.just(b"\xff" * len(body)) | st.just(b"\x00" * len(body)))
    text = as_json(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


@st.composite
def _other_tensors(draw: st.DrawFn, header: dict[str, Any]) -> dict[str, Any]:
    """A header that is sound in itself: a tensor under another name, shape or type."""
    found = copy.deepcopy(header)
    name = draw(st.sampled_from([name for name in found if name != "__metadata__"]))
    tensor = found[name]
    match draw(st.sampled_from(["name", "shape", "type", "metadata"])):
        case "name":
            found[draw(TEXTS | st.sampled_from(sorted(header)))] = found.pop(name)
        case "shape":
            whole = math.prod(tensor["shape"])
            shapes = [[whole], [whole, 1], [1, whole], [1, 1, whole]]
            tensor["shape"] = draw(st.sampled_from(shapes))
        case "type":
            alike = {"F32": ["I32", "U32"], "I32": ["F32", "U32"], "BF16": ["F16", "I16"]}
            tensor["dtype"] = draw(st.sampled_from(alike.get(tensor["dtype"], ["U8"])))
        case _:
            kept = found.get("__metadata__", {})
            found["__metadata__"] = {key: draw(TEXTS) for key in kept} | {"x": draw(TEXTS)}
    return found


# ------------------------------------------------------------------------------------ files
def changed_file(path: Path) -> st.SearchStrategy[bytes]:
    """What may stand in the place of a valid file, by its kind."""
    content = path.read_bytes()
    match path.suffix:
        case ".json":
            # a model's sizes are left in bounds: what they ask for is made
            numbers = path.name not in ("config.json", "tokenizer.json")
            return changed(json.loads(content), numbers).map(as_json) | damaged(content)
        case ".jsonl":
            first, *rest = content.splitlines(keepends=True)
            other = changed(json.loads(first)).map(
                lambda row: as_json(row) + b"\n" + b"".join(rest)
            )
            return other | damaged(content)
        case ".safetensors":
            return changed_tensors(content) | damaged(content)
        case ".tsv" | ".txt":
            return changed_lines(content, b"\t") | damaged(content)
        case ".csv" | ".yaml":
            return changed_lines(content, b"," if path.suffix == ".csv" else b":") | damaged(
                content
            )
        case _:
            return damaged(content)
