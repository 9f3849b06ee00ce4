"""
Sound artifacts made hostile: what somebody might put in the place of the files of a delta, an ensemble or a checkpoint.

An artifact is a `dict` from file names to contents. Every function takes a `random.Random`, so that a case is its seed.
"""

import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from smd_hf.run.lines import to_line


@dataclass(frozen=True)
class Special:
    """
    What is no regular file.

    Args:
        kind (`str`): `"link"`, `"folder"`, `"pipe"`, or `"hole"`: a file of zeros that takes no room on the disk.
        target (`str`, *optional*): of a link; of a hole, its size in bytes.
    """

    kind: str
    target: str = ""


Artifact = dict[str, bytes | Special]

PICKLE = b"cposix\nsystem\n(S'echo opened > OPENED'\ntR."
"""Runs a command where it is unpickled."""

CODE = b"open('OPENED', 'w').write('opened')\nclass Config: ...\nclass Model: ...\n"
"""Leaves a trace where it is imported."""

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    2**16,
    2**24,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
]
FLOATS = [0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]
TEXTS = [
    "",
    " ",
    ".",
    "..",
    "../outside/secret",
    "../../../../etc/passwd",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "C:\\Windows\\win.ini",
    "\\\\host\\share",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "user/other--code.Model",
    "code.Model",
    "smd_ensemble",
    "resnet",
    "vit",
    "bert",
    "timm_wrapper",
    "local-dir:/etc",
    "hf-hub:user/model",
    "float32",
    "bfloat16",
    "relu",
    "True",
    "null",
    "__class__",
    "__init__",
    "a\0b",
    "line\nbreak",
    "\x1b[31mred",
    "\ud800",
    "\u202eevil",
    "%s%n{0}{x}${HOME}",
    "x" * 300,
    "y" * 70000,
]
KEYS = [
    "auto_map",
    "architectures",
    "_name_or_path",
    "_attn_implementation",
    "attn_implementation",
    "base_model_tp_plan",
    "custom_pipelines",
    "dtype",
    "torch_dtype",
    "num_labels",
    "id2label",
    "label2id",
    "label_names",
    "model_args",
    "model_type",
    "pretrained_cfg",
    "problem_type",
    "pruned_heads",
    "quantization_config",
    "text_config",
    "tie_word_embeddings",
    "transformers_version",
    "transformers_weights",
    "trust_remote_code",
    "use_cache",
    "vision_config",
    "backbone_config",
    "__proto__",
    "self",
    "kwargs",
]
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "XX", ""]
# Text in the place of a number, which no Python value is written as.
RAW = [
    "1" * 5000,
    "1e999",
    "-1e999",
    "-0",
    "01",
    "0x10",
    "NaN",
    "Infinity",
    "1" + "0" * 400,
    "[" * 20000,
    '{"a":' * 5000,
]


def tampered(artifact: Mapping[str, bytes | Special], random: Random) -> Artifact:
    """A copy of an artifact with one to three things wrong with it."""
    changed = dict(artifact)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        if random.random() < 0.08:
            tamper_with_folder(changed, random)
            continue
        names = sorted(name for name, content in changed.items() if isinstance(content, bytes))
        if names:
            # Code is no business of a loader that may not run it.
            name = random.choice([name for name in names if not name.endswith(".py")] or names)
            changed[name] = tampered_file(name, changed[name], random)
    return changed


def tampered_file(name: str, content: bytes, random: Random) -> bytes:
    """A file's content, wrong in a way that its format allows, or with bytes that none allows."""
    if random.random() < 0.85:
        try:
            if name.endswith((".json", ".jsonl")):
                return tampered_json(content, random)
            if name.endswith(".safetensors"):
                return tampered_safetensors(content, random)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error, RecursionError):
            pass  # an earlier change has left nothing that could be read
    return tampered_bytes(content, random)


# ---- A folder --------------------------------------------------------------------------------------------------------


def tamper_with_folder(artifact: Artifact, random: Random) -> None:
    """A file that is a link, a folder or missing, or further files beside it, in place."""
    name = random.choice(sorted(artifact))
    match random.randrange(8):
        case 0:
            del artifact[name]
        case 1:
            artifact[name] = Special("link", random.choice(["../outside/secret", "/etc/passwd", name, "nowhere", "."]))
        case 2:
            artifact[f"real-{name}"] = artifact[name]
            artifact[name] = Special("link", f"real-{name}")
        case 3:
            artifact[name] = Special(random.choice(["folder", "pipe"]))
        case 4:
            artifact[
                random.choice(["pytorch_model.bin", "model.pt", "model.pkl", "rng_state.pth", "training_args.bin"])
            ] = PICKLE
            if random.random() < 0.5:
                del artifact[name]
        case 5:
            artifact[random.choice(["code.py", "modeling_resnet.py", "__init__.py", "torch.py", "json.py"])] = CODE
        case 6:
            shard = random.choice(
                ["model.safetensors", "a.safetensors", "../outside/secret", "/etc/passwd", "x.bin", ""]
            )
            artifact["model.safetensors.index.json"] = json.dumps(
                random.choice(
                    [{"weight_map": {"parent.x": shard}}, {"weight_map": [shard]}, {}, [], {"weight_map": shard}]
                )
            ).encode()
            artifact.pop("model.safetensors", None)
        case _:
            other = random.choice(sorted(artifact))
            artifact[name], artifact[other] = artifact[other], artifact[name]


def lay_out(artifact: Mapping[str, bytes | Special], folder: Path) -> None:
    """Writes an artifact into an empty folder, which is made."""
    folder.mkdir()
    for name, content in artifact.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
            continue
        match content.kind:
            case "link":
                path.symlink_to(content.target)
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "hole":
                path.touch()
                os.truncate(path, int(content.target))


# ---- JSON ------------------------------------------------------------------------------------------------------------


def tampered_json(content: bytes, random: Random) -> bytes:
    """A JSON document, or a document of JSON lines, with other values, keys or text."""
    lines = content.decode().splitlines(keepends=True)
    if len(lines) > 1 and all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
        return _tampered_lines(lines, random)
    if random.random() < 0.2:
        return tampered_json_text(content.decode(), random)
    value = json.loads(content)
    sealed = isinstance(value, dict) and "crc" in value and random.random() < 0.85
    if sealed:
        del value["crc"]
    for _ in range(random.choice([1, 1, 2])):
        value = tampered_value(value, random)
    # A wrong checksum is one thing that can be wrong; behind a right one, all the others are looked for.
    return to_line(value) if sealed and isinstance(value, dict) else json.dumps(value).encode()


def _tampered_lines(lines: list[str], random: Random) -> bytes:
    """JSON lines: one changed, dropped, repeated, cut or put elsewhere."""
    place = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(random.randrange(len(lines) + 1), lines[place])
        case 2:
            lines[place] = lines[place][: random.randrange(len(lines[place]))]
        case 3:
            lines.append(lines[-1].rstrip("\n")[: random.randrange(1, len(lines[-1]))])
        case _:
            lines[place] = tampered_json(lines[place].encode(), random).decode().rstrip("\n").replace("\n", " ") + "\n"
    return "".join(lines).encode()


def tampered_json_text(text: str, random: Random) -> bytes:
    """What Python's own writer of JSON would not write."""
    match random.randrange(6):
        case 0:  # a key given twice, with another value
            keys = list(re.finditer(r'("(?:[^"\\]|\\.)*")\s*:', text))
            key = random.choice(keys)
            other = json.dumps(hostile_value(random))
            return f"{text[: key.start()]}{key[1]}: {other}, {text[key.start() :]}".encode()
        case 1:
            numbers = list(re.finditer(r"-?\d+(\.\d+)?|null|true|false", text))
            number = random.choice(numbers)
            return f"{text[: number.start()]}{random.choice(RAW)}{text[number.end() :]}".encode()
        case 2:
            return (
                random.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b" " * 100, b"/* */", b"// x\n"]) + text.encode()
            )
        case 3:
            return text.encode() + random.choice([b",", b"}", b"\0", b"null", b"\xff", b"x" * 1000])
        case 4:
            return text.encode(random.choice(["utf-16", "utf-32", "utf-7", "utf-8-sig"]))
        case _:
            return text.replace(random.choice('":,{}[]'), random.choice(["", "'", ";", "\x00", "\u2028"]), 1).encode()


def tampered_value(value: Any, random: Random) -> Any:
    """A JSON value with something else at a place chosen at random."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        if isinstance(value, dict) and random.random() < 0.7:
            return value | {random.choice([*KEYS, *TEXTS]): hostile_value(random)}
        if isinstance(value, list) and random.random() < 0.7:
            place = random.randrange(len(value) + 1)
            return value[:place] + [hostile_value(random)] * random.choice([1, 2, 500]) + value[place:]
        return near_value(value, random)
    if isinstance(value, list):
        place = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value[:place] + [value[place]] * 2 + value[place + 1 :]
        return [*value[:place], tampered_value(value[place], random), *value[place + 1 :]]
    key = random.choice(sorted(value))
    match random.randrange(8):
        case 0:
            return {name: each for name, each in value.items() if name != key}
        case 1:
            new = random.choice([*KEYS, *TEXTS, key + "x", key.upper(), *value])
            return {new if name == key else name: each for name, each in value.items()}
        case 2:
            return value | {key: value[random.choice(sorted(value))]}
    return value | {key: tampered_value(value[key], random)}


def near_value(value: Any, random: Random) -> Any:
    """Something in the place of a value: often of the same type."""
    if random.random() < 0.4:
        return hostile_value(random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice(
            [value + 1, value - 1, -value, 2 * value, value * 10**9, float(value), str(value), *NUMBERS]
        )
    if isinstance(value, float):
        return random.choice([-value, value * 1e300, int(value) if abs(value) < 1e300 else 0, *FLOATS])
    if isinstance(value, str):
        if value and random.random() < 0.5:
            place = random.randrange(len(value))
            return (
                value[:place] + random.choice(["", "0", "a", "\0", "/", "..", value[place] * 2]) + value[place + 1 :]
            )
        return random.choice(TEXTS)
    return hostile_value(random)


def hostile_value(random: Random) -> Any:
    """A value that a format may not expect."""
    return random.choice(
        [
            lambda: None,
            lambda: random.choice([True, False]),
            lambda: random.choice(NUMBERS),
            lambda: random.choice(FLOATS),
            lambda: random.choice(TEXTS),
            lambda: random.choice(TEXTS),
            lambda: [],
            lambda: {},
            lambda: [random.choice(NUMBERS)] * random.choice([1, 3, 1000]),
            lambda: [random.choice(TEXTS)],
            lambda: {random.choice([*KEYS, *TEXTS]): random.choice([*NUMBERS, *TEXTS])},
            lambda: nested(random.choice([10, 100, 500])),
        ]
    )()


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# ---- Safetensors -----------------------------------------------------------------------------------------------------


def tampered_safetensors(content: bytes, random: Random) -> bytes:
    """A safetensors file with another header, other tensors, or a header and tensors which do not belong together."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    match random.randrange(8):
        case 0:
            length = random.choice([0, 1, size - 1, size + 1, size + 8, 2**31, 2**63, 2**64 - 1, len(content)])
            return struct.pack("<Q", length % 2**64) + content[8:]
        case 1:
            return _packed(tampered_json_text(json.dumps(header), random), bytes(data))
        case 2 | 3:
            return _packed(json.dumps(_tampered_header(header, random)).encode(), bytes(data))
        case 4:
            return _packed(json.dumps(header).encode(), bytes(data[: random.randrange(len(data) + 1)]))
        case 5:
            return _packed(json.dumps(header).encode(), bytes(data) + b"\0" * random.choice([1, 8, 4096]))
    name = random.choice(sorted(set(header) - {"__metadata__"}))
    begin, end = header[name]["data_offsets"]
    if not 0 <= begin < end <= len(data):
        raise ValueError("an earlier change has left no tensor there")
    random.choice([_tamper_with_numbers, _tamper_with_numbers, _resize, _rename])(header, data, name, random)
    return _packed(json.dumps(header).encode(), bytes(data))


def _packed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _tampered_header(header: dict[str, Any], random: Random) -> dict[str, Any]:
    """Names, dtypes, shapes and offsets that the data behind do not have."""
    name = random.choice(sorted(header))
    entry = header[name]
    if "shape" not in entry or random.random() < 0.3:
        return tampered_value(header, random)
    begin, end = entry["data_offsets"]
    change: Callable[[], dict[str, Any]] = random.choice(
        [
            lambda: {"dtype": random.choice(DTYPES)},
            lambda: {"shape": [*entry["shape"], random.choice([0, 1, 2])]},
            lambda: {"shape": [random.choice(NUMBERS)] * random.choice([1, 2, 3])},
            lambda: {"shape": entry["shape"][:-1]},
            lambda: {"data_offsets": [end, begin]},
            lambda: {"data_offsets": [begin, random.choice(NUMBERS)]},
            lambda: {"data_offsets": [random.choice(NUMBERS), end]},
            lambda: {"data_offsets": [begin - 4, end - 4]},
            lambda: {"data_offsets": [begin]},
            lambda: {random.choice(TEXTS): random.choice(NUMBERS)},
        ]
    )
    return header | {name: entry | change()}


_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}


def _tamper_with_numbers(header: dict[str, Any], data: bytearray, name: str, random: Random) -> None:
    """Numbers out of range, not finite, repeated or in another order, in a file that is sound as a file."""
    entry = header[name]
    begin, end = entry["data_offsets"]
    form = _FORMATS[entry["dtype"]]
    width = struct.calcsize(form)
    place = begin + width * random.randrange((end - begin) // width)
    if random.random() < 0.3:  # another number of the same tensor
        other = begin + width * random.randrange((end - begin) // width)
        value = bytes(data[other : other + width])
        if random.random() < 0.5:
            data[other : other + width] = data[place : place + width]
        data[place : place + width] = value
        return
    if form in "def":
        value = random.choice([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0])
    else:
        bits = 8 * width
        value = random.choice([-(2 ** (bits - 1)), -1, 0, 1, 2 ** (bits - 1) - 1, 100]) if form != "B" else 255
    data[place : place + width] = struct.pack(f"<{form}", value)


def _resize(header: dict[str, Any], data: bytearray, name: str, random: Random) -> None:
    """One tensor longer, shorter, empty or of another dtype, with all offsets as they have to be."""
    entry = header[name]
    begin, end = entry["data_offsets"]
    dtype = random.choice([entry["dtype"], entry["dtype"], "I32", "I64", "F32", "F16", "BF16", "BOOL"])
    width = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
    count = random.choice([0, 1, 2, (end - begin) // width, (end - begin) // width + 1, 5000])
    new = (bytes(data[begin:end]) + b"\0" * (width * count))[: width * count]
    data[begin:end] = new
    grown = len(new) - (end - begin)
    for other in set(header) - {"__metadata__", name}:
        low, high = header[other]["data_offsets"]
        if low >= end:
            header[other]["data_offsets"] = [low + grown, high + grown]
    header[name] = {
        "dtype": dtype,
        "shape": random.choice([[count], [count], [1, count], entry["shape"]]),
        "data_offsets": [begin, begin + len(new)],
    }


def _rename(header: dict[str, Any], data: bytearray, name: str, random: Random) -> None:
    """A tensor under another name, that of another one included."""
    new = random.choice([*header, name + "x", name.removesuffix("s"), name.replace("values", "indices"), *TEXTS])
    header[new] = header.pop(name)


# ---- Bytes -----------------------------------------------------------------------------------------------------------


def tampered_bytes(content: bytes, random: Random) -> bytes:
    """Bytes flipped, cut, doubled or put in; most of them at the start, where the headers are."""
    changed = bytearray(content)
    match random.randrange(6):
        case 0:
            return bytes(changed[: random.randrange(len(changed) + 1)])
        case 1:
            place = random.randrange(len(changed) + 1)
            changed[place:place] = random.randbytes(random.choice([1, 4, 64]))
        case 2:
            return random.choice(
                [b"", b"\0" * 64, PICKLE, b"PK\x03\x04" + bytes(60), random.randbytes(200), bytes(changed) * 2]
            )
        case _:
            for _ in range(random.choice([1, 2, 8])):
                if changed:
                    reach = len(changed) if random.random() < 0.5 else min(len(changed), 600)
                    changed[random.randrange(reach)] = random.randrange(256)
    return bytes(changed)
