"""Host memory of loading and saving a Llama-shaped model of any size.

    python tests/checkpoints/scale.py --help

The checkpoint is made of sparse files of zeros, so it takes no disk. Linux only (peak memory is
read from /proc). On a CPU the parameters are host memory themselves: they are subtracted.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import jax

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", int(os.environ.get("SCALE_DEVICES", "1")))

import numpy as np

from jaxr1.checkpoints import huggingface, tensors, weights
from jaxr1.nn.params import Param, Table, linear, stack, vector
from jaxr1.parallel import DEFAULT_RULES, MeshOptions

MIB = 1 << 20
QWEN2_7B = {
    "layers": 28,
    "width": 3584,
    "mlp": 18944,
    "heads": 28,
    "kv-heads": 4,
    "vocab": 152064,
}


def llama_table(layers: int, d: int, f: int, n: int, k: int, h: int, vocab: int) -> Table:
    """The tensors of a Llama with an untied head."""
    at = "model.layers.{}."
    layer = {
        "norm1": vector(at + "input_layernorm.weight", (d,), (None,)),
        "q": linear(at + "self_attn.q_proj.weight", (n, h), (d,), ("embed", "heads", None)),
        "k": linear(at + "self_attn.k_proj.weight", (k, h), (d,), ("embed", "kv_heads", None)),
        "v": linear(at + "self_attn.v_proj.weight", (k, h), (d,), ("embed", "kv_heads", None)),
        "o": linear(at + "self_attn.o_proj.weight", (d,), (n, h), ("heads", None, "embed")),
        "norm2": vector(at + "post_attention_layernorm.weight", (d,), (None,)),
        "gate": linear(at + "mlp.gate_proj.weight", (f,), (d,), ("embed", "mlp")),
        "up": linear(at + "mlp.up_proj.weight", (f,), (d,), ("embed", "mlp")),
        "down": linear(at + "mlp.down_proj.weight", (d,), (f,), ("mlp", "embed")),
    }
    size, axes = (vocab, d), ("vocab", "embed")
    return {
        **{f"layers/{key}": p for key, p in stack(layer, layers).items()},
        "embed": Param(size, axes, "model.embed_tokens.weight", size),
        "norm": vector("model.norm.weight", (d,), (None,)),
        "head": Param(size, axes, "lm_head.weight", size),
    }


def write_sparse(folder: Path, table: Table, max_bytes: int) -> int:
    """A bfloat16 checkpoint of zeros in shards whose data are holes.

    Returns the bytes of its largest tensor.
    """
    shards: list[dict] = [{}]
    where, largest, end = {}, 0, 0
    for p in table.values():
        for name in p.names():
            size = 2 * math.prod(p.hf_shape)
            if end + size > max_bytes:
                shards.append({})
                end = 0
            shards[-1][name] = {
                "dtype": "BF16",
                "shape": list(p.hf_shape),
                "data_offsets": [end, end + size],
            }
            where[name], end, largest = len(shards), end + size, max(largest, size)
    for i, header in enumerate(shards):
        text = json.dumps(header).encode()
        with open(folder / f"{i + 1}.safetensors", "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + max(e["data_offsets"][1] for e in header.values()))
    files = {name: f"{i}.safetensors" for name, i in where.items()}
    (folder / tensors.INDEX).write_text(json.dumps({"weight_map": files}))
    return largest


def memory(field: str) -> int:
    """VmRSS or VmHWM (the peak) of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


class Peak:
    """Peak resident memory inside the block above what was resident before, in `bytes`."""

    def __enter__(self):
        self.before, self.start = memory("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        return self

    def __exit__(self, *_):
        self.bytes, self.seconds = memory("VmHWM") - self.before, time.perf_counter() - self.start


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in QWEN2_7B.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--stack-mib", type=int, default=weights.STACK_BYTES // MIB)
    parser.add_argument("--shard-mib", type=int, default=5 << 10)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--tmp", default=None)
    args = parser.parse_args()
    mesh = MeshOptions().build()
    # The first load also maps XLA's compiler into memory.
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        small = llama_table(2, 64, 128, 4, 4, 16, 256)
        write_sparse(Path(folder), small, 1 << 30)
        weights.STACK_BYTES = 0
        flat = weights.load_params(Path(folder), {"hub": small}, args.dtype, mesh, DEFAULT_RULES)
        huggingface.save_directory(Path(folder) / "m", flat, small, "{}", None, args.dtype)
    weights.STACK_BYTES = args.stack_mib * MIB
    head = args.width // args.heads
    table = llama_table(
        args.layers, args.width, args.mlp, args.heads, args.kv_heads, head, args.vocab
    )
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        largest = write_sparse(Path(folder), table, args.shard_mib * MIB)
        with Peak() as load:
            flat = weights.load_params(
                Path(folder), {"hub": table}, args.dtype, mesh, DEFAULT_RULES
            )
    host = all(d.platform == "cpu" for d in mesh.devices.flat)
    parameters = sum(x.nbytes for x in flat.values())
    found = {
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "parameters_mib": parameters // MIB,
        "largest_tensor_mib": largest // MIB,
        "load_extra_mib": (load.bytes - parameters * host) // MIB,
        "load_s": round(load.seconds, 1),
    }
    assert not any(np.asarray(x[(0,) * x.ndim]) for x in flat.values())
    if args.save:
        with tempfile.TemporaryDirectory(dir=args.tmp) as folder, Peak() as save:
            huggingface.save_directory(
                Path(folder) / "m",
                flat,
                table,
                "{}",
                None,
                args.dtype,
                max_bytes=args.shard_mib * MIB,
            )
            found["files"] = len(list((Path(folder) / "m").glob("*.safetensors")))
        found |= {"save_extra_mib": save.bytes // MIB, "save_s": round(save.seconds, 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
